use lathe_api::{Error, Logits, Scorer};

use crate::{
    backend::Backend,
    executor::{Executor, Feed, Sequence, Want},
};

/// One sequence whose logits are read as it is fed.
pub(crate) struct NativeScorer<'a, B: Backend> {
    executor: &'a Executor<B>,
    sequence: Sequence,
    /// What was fed, where a longer sequence may have to be computed anew.
    tokens: Vec<u32>,
}

impl<'a, B: Backend> NativeScorer<'a, B> {
    pub(crate) fn new(executor: &'a Executor<B>) -> Self {
        Self { executor, sequence: executor.sequence(), tokens: Vec::new() }
    }
}

impl<B: Backend> Scorer for NativeScorer<'_, B> {
    fn feed(&mut self, tokens: &[u32]) -> Result<Logits, Error> {
        let mut logits = Logits { vocab: self.executor.spec.vocab, values: Vec::new() };
        let horizon = self.sequence.len() + tokens.len();
        if let Some(length) = self.executor.recompute_beyond() {
            if self.sequence.crosses(length, horizon) {
                self.sequence.forget();
                let again = Feed {
                    sequence: &mut self.sequence,
                    tokens: &self.tokens,
                    horizon,
                    want: Want::None,
                };
                self.executor.forward(&mut [again], &mut logits.values)?;
            }
            self.tokens.extend_from_slice(tokens);
        }
        let sequence = &mut self.sequence;
        let feed = Feed { sequence, tokens, horizon, want: Want::All };
        self.executor.forward(&mut [feed], &mut logits.values)?;
        Ok(logits)
    }

    fn reset(&mut self) {
        self.sequence.clear();
        self.tokens.clear();
    }
}
