use std::thread;

use super::probe::Divergence;
use crate::Error;

/// The original's logits, where there is room for them.
pub(super) struct Reference {
    vocab: usize,
    keeps: bool,
    /// By group of texts.
    logits: Vec<Vec<f32>>,
}

/// Logits that are kept: 256 MiB.
pub(super) const MOST_LOGITS: usize = 64 << 20;

impl Reference {
    pub(super) fn new(tokens: usize, vocab: usize) -> Self {
        let keeps = tokens.saturating_mul(vocab) <= MOST_LOGITS;
        Self { vocab, keeps, logits: Vec::new() }
    }

    pub(super) fn vocab(&self) -> usize {
        self.vocab
    }

    /// Whether logits need not be computed anew each time.
    pub(super) fn is_kept(&self) -> bool {
        self.keeps
    }

    /// Takes the logits of the next group, if they are kept.
    pub(super) fn keep(&mut self, logits: Vec<f32>) {
        if self.keeps {
            self.logits.push(logits);
        }
    }

    pub(super) fn kept(&self, group: usize) -> &[f32] {
        self.logits.get(group).map_or(&[], Vec::as_slice)
    }
}

/// Divergences added up, text by text.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// Of each text: the sum over its tokens, and their number.
    texts: Vec<(f64, usize)>,
}

impl Sums {
    /// Adds the texts of a group, whose logits before and after are `[T, V]`.
    pub(super) fn add(
        &mut self,
        vocab: usize,
        (base, other): (&[f32], &[f32]),
        lengths: &[usize],
        threads: usize,
    ) -> Result<(), Error> {
        let rows = rows(base, other, vocab, threads);
        let mut at = 0;
        for length in lengths {
            let mut sum = 0.0;
            for row in &rows[at..at + length] {
                sum += row.ok_or(Error::NotFinite)?;
            }
            self.texts.push((sum, *length));
            at += length;
        }
        Ok(())
    }

    /// The mean over all tokens, with the standard error of a ratio over texts.
    pub(super) fn divergence(&self) -> Divergence {
        let tokens: usize = self.texts.iter().map(|(_, tokens)| tokens).sum();
        let (count, tokens) = (self.texts.len() as f64, tokens.max(1) as f64);
        let mean = self.texts.iter().map(|(sum, _)| sum).sum::<f64>() / tokens;
        let off = |(sum, tokens): &(f64, usize)| (sum - mean * *tokens as f64).powi(2);
        let squares: f64 = self.texts.iter().map(off).sum();
        let error = match count > 1.0 {
            true => (squares * count / (count - 1.0)).sqrt() / tokens,
            false => 0.0,
        };
        Divergence { mean, error }
    }
}

/// The divergence of each row of logits; each by itself, so that threads change nothing.
fn rows(base: &[f32], other: &[f32], vocab: usize, threads: usize) -> Vec<Option<f64>> {
    let vocab = vocab.max(1);
    let count = base.len().min(other.len()) / vocab;
    let mut out = vec![None; count];
    let share = count.div_ceil(threads.max(1)).max(1);
    thread::scope(|scope| {
        let parts = out.chunks_mut(share);
        let logits = base.chunks(share * vocab).zip(other.chunks(share * vocab));
        for (out, (base, other)) in parts.zip(logits) {
            scope.spawn(move || {
                let mut between = lathe_eval::Divergence::default();
                let rows = base.chunks_exact(vocab).zip(other.chunks_exact(vocab));
                for (out, (base, other)) in out.iter_mut().zip(rows) {
                    *out = between.between(base, other);
                }
            });
        }
    });
    out
}
