use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use lathe_tokens::{TokenKind, Tokenizer};
use llguidance::{
    ParserFactory,
    earley::SlicedBiasComputer,
    toktrie::{
        ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo,
        TokTrie,
    },
};

use crate::{Error, Result, limits};

/// What every token of a model writes, as a tree of bytes. Made once for a tokenizer and shared.
pub struct Vocabulary {
    pub(crate) factory: ParserFactory,
    /// Tokens that write something.
    pub(crate) text: Arc<SimpleVob>,
}

impl Vocabulary {
    /// For a model with `rows` logits: tokens beyond them cannot be drawn.
    ///
    /// Tokens that stand for no text, such as those that begin and end a text or a turn, have no
    /// place in the tree: no grammar leads to them.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn new(tokenizer: &Tokenizer, rows: usize) -> Result<Self> {
        let special = [tokenizer.bos(), tokenizer.eos(), tokenizer.unk(), tokenizer.pad()];
        let writes = |id: u32| {
            let kind = tokenizer.kind(id);
            matches!(kind, TokenKind::Normal | TokenKind::UserDefined | TokenKind::Byte)
                && !special.contains(&Some(id))
        };
        let words = (0..rows as u32).map(|id| match writes(id) {
            true => tokenizer.token_bytes(id),
            false => Vec::new(),
        });
        Self::of(words.collect())
    }

    /// One token for each byte: what a grammar can be checked with before there is a model.
    pub(crate) fn of_bytes() -> Result<Self> {
        Self::of((0..=u8::MAX).map(|byte| vec![byte]).collect())
    }

    /// From what each token writes; nothing for those that cannot be part of a text.
    pub(crate) fn of(mut words: Vec<Vec<u8>>) -> Result<Self> {
        // 0xff is in no UTF-8, and marks special tokens in the library's tree.
        let fits = |word: &[u8]| word.len() <= limits::TOKEN && !word.contains(&0xff);
        words.iter_mut().filter(|word| !fits(word)).for_each(Vec::clear);
        let fail = |why: String| Error::Tokenizer { why };
        let count =
            u32::try_from(words.len()).map_err(|_| fail("it has too many tokens".into()))?;
        // The library asserts its own limits on the size of a tree.
        let made = catch_unwind(AssertUnwindSafe(|| {
            // Texts are ended by the engine, with whichever tokens a request names.
            let trie = TokTrie::from(&TokRxInfo::new(count, INVALID_TOKEN), &words);
            let mut text = trie.alloc_token_set();
            (0..count).filter(|id| !words[*id as usize].is_empty()).for_each(|id| {
                text.allow_token(id);
            });
            // It does not tokenize as the model's tokenizer does, so it forces no tokens: what is
            // drawn is drawn from the model's own distribution over all that may come.
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let slices = SlicedBiasComputer::general_slices();
            let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices);
            factory.map(|factory| (factory, text))
        }));
        let (mut factory, text) = made
            .map_err(|_| fail("its tokens are too many or too long".into()))?
            .map_err(|error| fail(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = limits::library();
        Ok(Self { factory, text: Arc::new(text) })
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary").field("tokens", &self.text.len()).finish_non_exhaustive()
    }
}
