use std::{
    collections::HashMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use serde_json::Value;
use tokenizers::{AddedToken, AddedVocabulary, Model, OffsetType, PreTokenizer};

use crate::{
    Error, Result, TokenKind,
    affixes::Affixes,
    settings::{Added, Settings},
    surface::{Surface, byte_token},
    vocabulary::{MAX_TOKENS, Vocabulary},
};

/// A tokenizer by Hugging Face's own library, for everything that is a `tokenizer.json` or can be
/// written as one.
pub(crate) struct Hf {
    inner: tokenizers::Tokenizer,
    /// The same added tokens, with the special ones read as plain text.
    plain: AddedVocabulary,
}

impl fmt::Debug for Hf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hf").finish_non_exhaustive()
    }
}

/// What [`Hf::build`] makes: the encoder, and what is known about its tokens.
pub(crate) struct Parts {
    pub(crate) hf: Hf,
    pub(crate) vocabulary: Vocabulary,
    pub(crate) affixes: Affixes,
}

impl Hf {
    /// From the contents of a `tokenizer.json`, called `file` in messages.
    ///
    /// What only training, batching or truncation need is left out, and so are the parts that
    /// [`Affixes`] and [`Surface`] take over.
    pub(crate) fn build(file: &str, mut json: Value, settings: &Settings) -> Result<Parts> {
        check(file, &json)?;
        let post_processor = take(&mut json, "post_processor");
        let surface = Surface::read(file, &take(&mut json, "decoder"))?;
        take(&mut json, "truncation");
        take(&mut json, "padding");
        if let Some(dropout) = json.pointer_mut("/model/dropout") {
            *dropout = Value::Null;
        }
        let mut inner = guarded(|| Ok(serde_json::from_value::<tokenizers::Tokenizer>(json)?))
            .map_err(|e| Error::broken(file, e))?;
        add_missing(file, &mut inner, &settings.added)?;
        let vocab = inner.get_vocab(true);
        let affixes = Affixes::read(file, &post_processor, &vocab)?;
        let vocabulary = vocabulary(file, &inner, vocab, surface)?;
        let ids = affixes.before.iter().chain(&affixes.after);
        if let Some(id) = ids.into_iter().find(|id| vocabulary.text(**id).is_none()) {
            return Err(Error::broken(
                file,
                format!("post_processor adds {id}, which is no token"),
            ));
        }
        let mut plain = inner.get_added_vocabulary().clone();
        plain.set_encode_special_tokens(true);
        Ok(Parts { hf: Self { inner, plain }, vocabulary, affixes })
    }

    /// The ids of a text, without bos and eos. With `parse_special`, special tokens written out in
    /// the text become their ids; without, they are text like any other.
    pub(crate) fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, String> {
        let added = if parse_special { self.inner.get_added_vocabulary() } else { &self.plain };
        guarded(|| {
            let mut split = added.extract_and_normalize(self.inner.get_normalizer(), text);
            if let Some(pre) = self.inner.get_pre_tokenizer() {
                pre.pre_tokenize(&mut split)?;
            }
            split.tokenize(|part| self.inner.get_model().tokenize(part.get()))?;
            let encoding = split.into_encoding(None, 0, OffsetType::None)?;
            Ok(encoding.get_ids().to_vec())
        })
    }

    /// The model, normalizer and pre-tokenizer as a `tokenizer.json` writes them.
    pub(crate) fn to_json(&self) -> Result<Value, String> {
        serde_json::to_value(&self.inner).map_err(|e| e.to_string())
    }

    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}

/// Runs the library with its panics turned into errors: a hostile regular expression, charsmap or
/// prefix can make it index out of bounds, and a file must never bring the program down.
fn guarded<T>(f: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the tokenizers library failed on it".to_owned()),
    }
}

fn take(json: &mut Value, key: &str) -> Value {
    json.get_mut(key).map_or(Value::Null, Value::take)
}

/// Refuses, before the library sees it, what it is known to panic or to blow up on.
fn check(file: &str, json: &Value) -> Result<()> {
    let broken = |why: &str| Err(Error::broken(file, why));
    let Some(model) = json.get("model").filter(|m| m.is_object()) else {
        return broken("it has no `model`, so it is not a tokenizer.json");
    };
    let size = match model.get("vocab") {
        Some(Value::Object(vocab)) => vocab.len(),
        Some(Value::Array(vocab)) => vocab.len(),
        _ => return broken("its model has no `vocab`"),
    };
    if size == 0 || size > MAX_TOKENS {
        return broken(&format!("its vocabulary has {size} entries"));
    }
    let Some(prefix) = model.get("continuing_subword_prefix").and_then(Value::as_str) else {
        return Ok(());
    };
    let merges = model.get("merges").and_then(Value::as_array).into_iter().flatten();
    let second = |m: &Value| match m {
        Value::String(pair) => pair.split_once(' ').map(|(_, b)| b.to_owned()),
        pair => pair.get(1)?.as_str().map(str::to_owned),
    };
    let cut = |b: String| b.is_char_boundary(prefix.len()) && b.len() >= prefix.len();
    if !prefix.is_empty() && !merges.filter_map(second).all(cut) {
        return broken("a merge is shorter than `continuing_subword_prefix`");
    }
    Ok(())
}

fn add_missing(file: &str, inner: &mut tokenizers::Tokenizer, added: &[Added]) -> Result<()> {
    let missing: Vec<AddedToken> = added
        .iter()
        .filter(|a| !inner.get_added_vocabulary().get_vocab().contains_key(&a.text))
        .map(|a| {
            AddedToken::from(a.text.clone(), a.special)
                .normalized(a.normalized)
                .lstrip(a.lstrip)
                .rstrip(a.rstrip)
                .single_word(a.single_word)
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    guarded(|| Ok(inner.add_tokens(&missing))).map(drop).map_err(|e| Error::broken(file, e))
}

fn vocabulary(
    file: &str,
    inner: &tokenizers::Tokenizer,
    vocab: HashMap<String, u32>,
    surface: Surface,
) -> Result<Vocabulary> {
    let added = inner.get_added_vocabulary();
    let byte_tokens = surface.byte_tokens;
    let entries = vocab.into_iter().map(|(text, id)| {
        let kind = match added.get_added_tokens_decoder().get(&id) {
            Some(token) if token.special => TokenKind::Control,
            Some(_) => TokenKind::UserDefined,
            None if byte_tokens && byte_token(&text).is_some() => TokenKind::Byte,
            None => TokenKind::Normal,
        };
        (id, text, kind)
    });
    Vocabulary::new(file, entries, surface)
}
