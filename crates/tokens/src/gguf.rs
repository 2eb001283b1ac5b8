//! The vocabulary inside a GGUF.

use lathe_files::gguf::{Array, Metadata, Value as Field};
use serde_json::{Map, Value, json};

use crate::{
    Error, Result, TokenKind,
    affixes::Affixes,
    pre::Pre,
    sentencepiece::{Piece, SentencePiece},
    spm::Spm,
    surface::Surface,
    vocabulary::{MAX_TOKENS, Vocabulary},
};

const FILE: &str = "the GGUF's vocabulary";

/// Tokens that end a turn, known by their text because GGUF has a field for one only.
/// **Source**: the list of end-of-generation tokens in llama.cpp, for the families here.
const ENDS: [&str; 10] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "<eos>",
    "</s>",
];

/// What a GGUF says about its tokenizer, held against each other but not yet put to use.
pub(crate) struct Vocab<'a> {
    meta: &'a Metadata,
    tokens: &'a [String],
    kinds: Vec<TokenKind>,
}

impl<'a> Vocab<'a> {
    pub(crate) fn read(meta: &'a Metadata) -> Result<Self> {
        let tokens = meta
            .strings("tokenizer.ggml.tokens")
            .ok_or_else(|| Error::broken(FILE, "it has no tokenizer.ggml.tokens"))?;
        if tokens.is_empty() || tokens.len() > MAX_TOKENS {
            return Err(Error::broken(FILE, format!("it has {} tokens", tokens.len())));
        }
        let kinds = match meta.i32s("tokenizer.ggml.token_type") {
            None => vec![TokenKind::Normal; tokens.len()],
            Some(kinds) if kinds.len() == tokens.len() => {
                kinds.iter().map(|&k| TokenKind::from_number(k.into())).collect()
            }
            Some(kinds) => return Err(mismatch("token types", kinds.len(), tokens.len())),
        };
        Ok(Self { meta, tokens, kinds })
    }

    /// `llama` (SentencePiece), `gpt2` (byte-level BPE) or `t5` (unigram).
    pub(crate) fn model(&self) -> &str {
        self.meta.str("tokenizer.ggml.model").unwrap_or("llama")
    }

    /// An id by its role: `bos`, `eos`, `unknown`, `padding`, `eot`, `eom`.
    pub(crate) fn role(&self, role: &str) -> Option<u32> {
        let id = self.meta.u64(&format!("tokenizer.ggml.{role}_token_id"));
        match (id, self.model(), role) {
            (None, "llama", "bos") => Some(1),
            (None, "llama", "eos") => Some(2),
            (None, "llama", "unknown") => Some(0),
            (id, ..) => id.and_then(|id| u32::try_from(id).ok()),
        }
        .filter(|id| (*id as usize) < self.tokens.len())
    }

    /// Every id that ends a turn or a text.
    pub(crate) fn ends(&self) -> Vec<u32> {
        let roles = ["eos", "eot", "eom"].into_iter().filter_map(|role| self.role(role));
        let control = |(_, kind): &(u32, TokenKind)| *kind == TokenKind::Control;
        let known = (0u32..).zip(self.kinds.iter().copied()).filter(control);
        let known = known.filter(|(id, _)| ENDS.contains(&self.tokens[*id as usize].as_str()));
        roles.chain(known.map(|(id, _)| id)).collect()
    }

    /// bos and eos as the file asks for them.
    pub(crate) fn affixes(&self) -> Affixes {
        let by_default = match self.model() {
            "llama" => true,
            "gpt2" => self.pre().is_ok_and(|pre| pre.add_bos),
            _ => false,
        };
        let wants = |role: &str, default: bool| {
            let flag = self.meta.bool(&format!("tokenizer.ggml.add_{role}_token"));
            self.role(role).filter(|_| flag.unwrap_or(default))
        };
        let unigram = self.model() == "t5";
        Affixes {
            before: wants("bos", by_default).into_iter().collect(),
            after: wants("eos", unigram).into_iter().collect(),
        }
    }

    fn pre(&self) -> Result<&'static Pre> {
        let name = self.meta.str("tokenizer.ggml.pre").unwrap_or("default");
        Pre::by_name(name)
            .ok_or_else(|| Error::unsupported(FILE, format!("the pre-tokenizer `{name}`")))
    }

    fn space_prefix(&self) -> bool {
        self.meta.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true)
    }

    fn scores(&self) -> Result<Vec<f32>> {
        let scores = self.meta.f32s("tokenizer.ggml.scores");
        let scores = scores.ok_or_else(|| Error::broken(FILE, "it has no scores"))?;
        if scores.len() != self.tokens.len() {
            return Err(mismatch("scores", scores.len(), self.tokens.len()));
        }
        match scores.iter().position(|s| s.is_nan()) {
            Some(id) => Err(Error::broken(FILE, format!("the score of token {id} is NaN"))),
            None => Ok(scores.to_vec()),
        }
    }

    /// The SentencePiece tokenizer of a `llama` vocabulary.
    pub(crate) fn spm(&self) -> Result<(Spm, Vocabulary)> {
        let entries = (0u32..).zip(self.tokens).zip(&self.kinds);
        let entries = entries.map(|((id, text), kind)| (id, text.clone(), *kind));
        let strip = usize::from(self.space_prefix());
        let vocabulary = Vocabulary::new(FILE, entries, Surface::sentencepiece(strip))?;
        let unk = self.role("unknown");
        let spm = Spm::new(&vocabulary, self.scores()?, unk, self.space_prefix());
        Ok((spm, vocabulary))
    }

    /// A `gpt2` or `t5` vocabulary as a `tokenizer.json`.
    pub(crate) fn to_json(&self) -> Result<Value> {
        match self.model() {
            "gpt2" => self.byte_level(),
            "t5" => self.unigram(),
            other => Err(Error::unsupported(FILE, format!("the tokenizer `{other}`"))),
        }
    }

    fn byte_level(&self) -> Result<Value> {
        let pre = self.pre()?;
        let merges = self.meta.strings("tokenizer.ggml.merges");
        let merges = merges.ok_or_else(|| Error::broken(FILE, "it has no merges"))?;
        let pair = |merge: &String| {
            // a merge's first part may itself start with a space only in damaged files
            let (a, b) = merge.split_once(' ').unwrap_or((merge, ""));
            json!([a, b])
        };
        let mut vocab = Map::with_capacity(self.tokens.len());
        for (id, text) in self.tokens.iter().enumerate() {
            if vocab.insert(text.clone(), json!(id)).is_some() {
                return Err(Error::broken(FILE, format!("the token `{text}` is twice in it")));
            }
        }
        let normalizer = if pre.nfc { json!({"type": "NFC"}) } else { Value::Null };
        Ok(json!({
            "version": "1.0",
            "added_tokens": self.added(),
            "normalizer": normalizer,
            "pre_tokenizer": pre.to_json(),
            "decoder": {"type": "ByteLevel"},
            "model": {
                "type": "BPE",
                "ignore_merges": pre.ignore_merges,
                "vocab": vocab,
                "merges": merges.iter().map(pair).collect::<Vec<_>>(),
            },
        }))
    }

    fn added(&self) -> Vec<Value> {
        let added = self.tokens.iter().zip(&self.kinds).enumerate();
        let added = added.filter(|(_, (_, k))| k.is_special() || **k == TokenKind::UserDefined);
        added
            .map(|(id, (text, kind))| {
                json!({
                    "id": id, "content": text, "special": kind.is_special(), "normalized": false,
                    "single_word": false, "lstrip": false, "rstrip": false,
                })
            })
            .collect()
    }

    fn unigram(&self) -> Result<Value> {
        let scores = self.scores()?;
        let pieces = self.tokens.iter().zip(&self.kinds).zip(scores);
        let pieces =
            pieces.map(|((text, kind), score)| Piece { text: text.clone(), score, kind: *kind });
        let charsmap = match self.meta.get("tokenizer.ggml.precompiled_charsmap") {
            Some(Field::Array(Array::U8(bytes))) => bytes.clone(),
            Some(Field::Array(Array::I8(bytes))) => {
                bytes.iter().map(|b| b.cast_unsigned()).collect()
            }
            _ => Vec::new(),
        };
        let flag = |name: &str, default| {
            self.meta.bool(&format!("tokenizer.ggml.{name}")).unwrap_or(default)
        };
        let unk = self.role("unknown").unwrap_or(0);
        let spaces = (self.space_prefix(), flag("remove_extra_whitespaces", false));
        SentencePiece::unigram_of(pieces.collect(), unk.into(), charsmap, spaces)
            .to_json(FILE, &Default::default())
    }

    /// Everything about the tokenizer, as the file has it.
    pub(crate) fn fields(meta: &Metadata) -> Vec<(String, Field)> {
        let ours = meta.iter().filter(|(key, _)| key.starts_with("tokenizer."));
        ours.map(|(key, value)| (key.to_owned(), value.clone())).collect()
    }
}

fn mismatch(what: &str, have: usize, tokens: usize) -> Error {
    Error::broken(FILE, format!("it has {have} {what} for {tokens} tokens"))
}
