use lathe_base::Bytes;
use lathe_formats::KvType;

use crate::{Spec, Weight};

impl Spec {
    /// Bytes of all weights, where `row_bytes` says how long one stored row of a weight is:
    /// `|w| format.row_bytes(w.cols)`.
    pub fn weight_bytes(&self, row_bytes: impl Fn(&Weight) -> usize) -> Bytes {
        self.weights().iter().map(|w| Bytes((w.rows * row_bytes(w)) as u64)).sum()
    }

    /// Bytes of keys and values for `tokens` positions in all sequences together: what a pass
    /// after so many tokens reads.
    ///
    /// Layers with a sliding window count every position, because the paged cache keeps whole
    /// sequences: an upper bound on what attention reads.
    pub fn kv_bytes(&self, tokens: usize, kind: KvType) -> Bytes {
        let token = |layer: &crate::Layer| {
            let attention = layer.attention();
            attention.kv_heads as u64 * kind.token_bytes(attention.head_dim) as u64
        };
        let per_token: u64 = self.layers.iter().map(token).sum();
        Bytes(per_token.saturating_mul(tokens as u64))
    }

    /// Bytes of a KV cache for `batch` sequences of `context` positions: exactly what the native
    /// engine sets aside. Pages are whole, and types that code a page at a time keep each
    /// sequence's newest one in f16.
    pub fn cache_bytes(&self, context: usize, batch: usize, kind: KvType) -> Bytes {
        let batch = batch.max(1);
        let tokens = context.next_multiple_of(KvType::PAGE).saturating_mul(batch);
        let recent = KvType::PAGE.saturating_mul(kind.recent(batch));
        self.kv_bytes(tokens, kind) + self.kv_bytes(recent, KvType::F16)
    }

    /// Bytes of the buffers of one forward pass over `tokens` positions that answers with
    /// `logits` rows of logits, all of them f32.
    ///
    /// The native executor allocates exactly these: the residual stream, the normed input, a
    /// branch's output, queries and their mixed values, keys, values, gate and up, logits; where
    /// there are experts, also their scores, the inputs of one of them, and its outputs.
    pub fn activation_bytes(&self, tokens: usize, logits: usize) -> Bytes {
        let widest = |of: fn(&crate::Layer) -> usize| self.layers.iter().map(of).max().unwrap_or(0);
        let q = widest(|l| l.attention().q_width());
        let kv = widest(|l| l.attention().kv_width());
        let ff = widest(|l| l.mlp.widest());
        let experts = widest(|l| l.mlp.experts().map_or(0, |experts| experts.count));
        let routed = if experts > 0 { experts + 2 * self.width } else { 0 };
        let per_token = 3 * self.width + 2 * q + 2 * kv + 2 * ff + routed;
        Bytes(4 * (tokens as u64 * per_token as u64 + logits as u64 * self.vocab as u64))
    }
}
