use lathe_base::Bytes;

use crate::{Mlp, Spec, Weight};

impl Spec {
    /// Bytes of all weights, where `row_bytes` says how long one stored row of a weight is:
    /// `|w| format.row_bytes(w.cols)`.
    pub fn weight_bytes(&self, row_bytes: impl Fn(&Weight) -> usize) -> Bytes {
        self.weights().iter().map(|w| Bytes((w.rows * row_bytes(w)) as u64)).sum()
    }

    /// Bytes of keys and values for `tokens` positions in all sequences together.
    ///
    /// `element` is the size of one stored number (4 for f32, 2 for f16; may be a fraction).
    /// Layers with a sliding window count every position, because the paged cache keeps whole
    /// sequences: an upper bound on what attention reads, and exactly what the cache holds once
    /// `tokens` is rounded up to its block per sequence.
    pub fn kv_bytes(&self, tokens: usize, element: f64) -> Bytes {
        let numbers: u64 = self.layers.iter().map(|l| 2 * l.attention().kv_width() as u64).sum();
        Bytes((numbers as f64 * tokens as f64 * element).ceil() as u64)
    }

    /// Bytes of the buffers of one forward pass over `tokens` positions that answers with
    /// `logits` rows of logits, all of them f32.
    ///
    /// The native executor allocates exactly these: the residual stream, the normed input, a
    /// branch's output, queries and their mixed values, keys, values, gate and up, logits.
    pub fn activation_bytes(&self, tokens: usize, logits: usize) -> Bytes {
        let widest = |of: fn(&crate::Layer) -> usize| self.layers.iter().map(of).max().unwrap_or(0);
        let q = widest(|l| l.attention().q_width());
        let kv = widest(|l| l.attention().kv_width());
        let ff = widest(|l| {
            let Mlp::Gated { width, .. } = l.mlp;
            width
        });
        let per_token = 3 * self.width + 2 * q + 2 * kv + 2 * ff;
        Bytes(4 * (tokens as u64 * per_token as u64 + logits as u64 * self.vocab as u64))
    }
}
