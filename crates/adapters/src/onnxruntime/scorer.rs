use lathe_api::{Error, Logits, Scorer};

use super::{
    OnnxRuntime,
    graph::{Feed, Sequences},
};

/// A sequence whose logits are read as it is fed.
pub(super) struct OneSequence<'a> {
    engine: &'a OnnxRuntime,
    sequence: Sequences,
    length: usize,
}

impl<'a> OneSequence<'a> {
    pub(super) fn new(engine: &'a OnnxRuntime) -> Result<Self, Error> {
        let sequence = engine.graph().begin(1, engine.info.context);
        let sequence = sequence.map_err(|error| engine.failed(error))?;
        Ok(Self { engine, sequence, length: 0 })
    }
}

impl Scorer for OneSequence<'_> {
    fn feed(&mut self, tokens: &[u32]) -> Result<Logits, Error> {
        let info = &self.engine.info;
        let needed = self.length + tokens.len();
        if needed > info.context {
            return Err(Error::ContextExceeded { needed, context: info.context });
        }
        if let Some(id) = tokens.iter().find(|id| **id as usize >= info.vocab) {
            let what = format!("token {id} is outside the vocabulary of {}", info.vocab);
            return Err(Error::BadRequest { what });
        }
        if tokens.is_empty() {
            return Ok(Logits { vocab: info.vocab, values: Vec::new() });
        }
        let ids = tokens.iter().map(|id| i64::from(*id)).collect();
        let feed = Feed { ids, mask: vec![1; needed], from: 0 };
        let values = self.engine.graph().run(&mut self.sequence, feed);
        let values = values.map_err(|error| self.engine.failed(error))?;
        self.length = needed;
        Ok(Logits { vocab: info.vocab, values })
    }

    fn reset(&mut self) {
        // What is in the cache beyond a sequence's length is never looked at.
        self.length = 0;
    }
}
