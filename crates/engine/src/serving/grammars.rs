use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use lathe_api::Grammar;
use lathe_grammar::{Compiled, Vocabulary};
use lathe_tokens::Tokenizer;

use crate::Error;

/// The grammars of a model's requests: the tree of its tokens is made with the first one, and the
/// last few are kept, because clients send the same one again and again.
#[derive(Debug, Default)]
pub(crate) struct Grammars {
    vocabulary: Mutex<Option<Arc<Vocabulary>>>,
    /// The last used at the end.
    recent: Mutex<VecDeque<(Grammar, Arc<Compiled>)>>,
}

/// How many grammars are kept. One takes some tens of kilobytes, at worst some megabytes.
const KEPT: usize = 16;

impl Grammars {
    /// Takes as long as the grammar is large, so it is called by who submits it.
    ///
    /// # Errors
    /// [`Error::Grammar`]; [`Error::Request`] without a tokenizer.
    pub(crate) fn compiled(
        &self,
        grammar: &Grammar,
        tokenizer: Option<&Tokenizer>,
        vocab: usize,
    ) -> Result<Arc<Compiled>, Error> {
        if let Some(known) = self.known(grammar) {
            return Ok(known);
        }
        let Some(tokenizer) = tokenizer else {
            return Err(Error::Request("a grammar needs a tokenizer".into()));
        };
        let vocabulary = self.vocabulary(tokenizer, vocab)?;
        let compiled = Arc::new(Compiled::new(grammar, &vocabulary)?);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == KEPT {
            recent.pop_front();
        }
        recent.push_back((grammar.clone(), Arc::clone(&compiled)));
        Ok(compiled)
    }

    fn known(&self, grammar: &Grammar) -> Option<Arc<Compiled>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let at = recent.iter().position(|(other, _)| other == grammar)?;
        let found = recent.remove(at)?;
        let compiled = Arc::clone(&found.1);
        recent.push_back(found);
        Some(compiled)
    }

    fn vocabulary(&self, tokenizer: &Tokenizer, vocab: usize) -> Result<Arc<Vocabulary>, Error> {
        let mut made = self.vocabulary.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(vocabulary) = &*made {
            return Ok(Arc::clone(vocabulary));
        }
        let vocabulary = Arc::new(Vocabulary::new(tokenizer, vocab)?);
        *made = Some(Arc::clone(&vocabulary));
        Ok(vocabulary)
    }
}
