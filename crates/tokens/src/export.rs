use std::collections::{HashMap, HashSet};

use lathe_files::gguf::{Array, Metadata, Value as Field};
use serde_json::Value;

use crate::{
    Error, Result, TokenKind, Tokenizer, hf::Hf, pre::Pre, sentencepiece::unbase64,
    vocabulary::MAX_TOKENS,
};

/// A tokenizer and its chat template as GGUF metadata.
#[derive(Clone, Debug)]
pub struct Export {
    /// `tokenizer.*`, all that llama.cpp needs.
    pub metadata: Metadata,
    /// Where llama.cpp may read a text differently, in one line each; empty as a rule.
    pub notes: Vec<String>,
}

/// A GGUF holds one of three kinds of tokenizer.
enum Kind {
    ByteLevel { pre: &'static Pre, merges: Vec<String> },
    SentencePiece { scores: Vec<f32> },
    Unigram { scores: Vec<f32>, charsmap: Vec<u8>, squeeze: bool },
}

impl Export {
    /// Writes the tokenizer for an embedding of `rows` rows, because a reader counts tokens to
    /// know the embedding's size: rows beyond the vocabulary become unused tokens, and tokens
    /// beyond the embedding, which the model cannot read, are left out.
    ///
    /// **Errors**: [`Error::Unsupported`] for what GGUF has no name for.
    pub(crate) fn new(tokenizer: &Tokenizer, file: &str, hf: &Hf, rows: usize) -> Result<Self> {
        let size = tokenizer.vocab_size();
        if rows == 0 || rows > MAX_TOKENS {
            return Err(Error::broken(file, format!("the embedding has {rows} rows")));
        }
        let mut notes = Vec::new();
        if size > rows {
            notes.push(format!("tokens {rows} to {} have no row in the model", size - 1));
        }
        let kind = Kind::of(tokenizer, file, hf, &mut notes)?;
        let metadata = write(tokenizer, &kind, rows);
        Ok(Self { metadata, notes })
    }
}

impl Kind {
    fn of(tokenizer: &Tokenizer, file: &str, hf: &Hf, notes: &mut Vec<String>) -> Result<Self> {
        let json = hf.to_json().map_err(|why| Error::broken(file, why))?;
        let surface = &tokenizer.vocabulary().surface;
        match json.pointer("/model/type").and_then(Value::as_str).unwrap_or_default() {
            "BPE" if surface.byte_level => Self::byte_level(file, &json, notes),
            "BPE" => Ok(Self::sentencepiece(tokenizer, &json, notes)),
            "Unigram" => Self::unigram(file, &json),
            other => Err(Error::unsupported(file, format!("{other} in a GGUF"))),
        }
    }

    fn byte_level(file: &str, json: &Value, notes: &mut Vec<String>) -> Result<Self> {
        let nfc = match json.pointer("/normalizer/type").and_then(Value::as_str) {
            None => false,
            Some("NFC") => true,
            Some(other) => {
                notes.push(format!("a GGUF cannot say that text is normalized by {other} first"));
                false
            }
        };
        let whole = json.pointer("/model/ignore_merges").and_then(Value::as_bool) == Some(true);
        let pre = Pre::matching(&json["pre_tokenizer"], whole, nfc).ok_or_else(|| {
            let what = "its pre-tokenizer in a GGUF (none that llama.cpp names splits text so)";
            Error::unsupported(file, what)
        })?;
        if pre.nfc != nfc {
            notes.push("llama.cpp and Lathe differ on characters that NFC composes".to_owned());
        }
        if pre.ignore_merges != whole {
            notes.push("llama.cpp may take words apart that are tokens as a whole".to_owned());
        }
        let merges = merges(json).map(|(a, b)| format!("{a} {b}")).collect();
        Ok(Self::ByteLevel { pre, merges })
    }

    /// Scores are the model's own where a `tokenizer.model` gave them; else each token gets the
    /// rank of its first merge, so that joins happen in the same order.
    fn sentencepiece(tokenizer: &Tokenizer, json: &Value, notes: &mut Vec<String>) -> Self {
        if tokenizer.vocabulary().iter().all(|(.., kind)| kind != TokenKind::Byte) {
            notes.push("llama.cpp stops at a character that is not in the vocabulary".to_owned());
        }
        if let Some(scores) = tokenizer.scores() {
            return Self::SentencePiece { scores: scores.to_vec() };
        }
        let mut scores = vec![0.0; tokenizer.vocab_size()];
        let mut given: HashSet<(&str, &str)> = HashSet::new();
        let mut ranks: HashMap<String, usize> = HashMap::new();
        for (rank, (a, b)) in merges(json).enumerate() {
            given.insert((a, b));
            ranks.entry(format!("{a}{b}")).or_insert(rank);
        }
        let mut more = 0;
        for (id, text, kind) in tokenizer.vocabulary().iter() {
            if let Some(rank) = ranks.get(text) {
                scores[id as usize] = -(*rank as f32);
            }
            if kind == TokenKind::Normal {
                let cuts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
                let known = |part: &str| tokenizer.token_id(part).is_some();
                more += cuts
                    .filter(|(a, b)| !given.contains(&(*a, *b)) && known(a) && known(b))
                    .count();
            }
        }
        if more > 0 {
            notes.push(format!(
                "llama.cpp may split text differently: it joins any two tokens that make a third, and {more} such joins are not among this tokenizer's merges"
            ));
        }
        Self::SentencePiece { scores }
    }

    fn unigram(file: &str, json: &Value) -> Result<Self> {
        let vocab = json.pointer("/model/vocab").and_then(Value::as_array);
        let scores = vocab.into_iter().flatten();
        let scores = scores.map(|p| p.get(1).and_then(Value::as_f64).unwrap_or(0.0) as f32);
        let mut steps = vec![&json["normalizer"]];
        let (mut charsmap, mut squeeze) = (Vec::new(), false);
        while let Some(step) = steps.pop() {
            steps.extend(step.get("normalizers").and_then(Value::as_array).into_iter().flatten());
            if let Some(map) = step.get("precompiled_charsmap").and_then(Value::as_str) {
                charsmap = unbase64(map)
                    .ok_or_else(|| Error::broken(file, "its precompiled_charsmap is not base64"))?;
            }
            squeeze |= step.pointer("/pattern/Regex").and_then(Value::as_str) == Some(" {2,}");
        }
        Ok(Self::Unigram { scores: scores.collect(), charsmap, squeeze })
    }
}

fn merges(json: &Value) -> impl Iterator<Item = (&str, &str)> {
    let all = json.pointer("/model/merges").and_then(Value::as_array).into_iter().flatten();
    all.filter_map(|merge| match merge {
        Value::String(pair) => pair.split_once(' '),
        pair => Some((pair.get(0)?.as_str()?, pair.get(1)?.as_str()?)),
    })
}

fn write(tokenizer: &Tokenizer, kind: &Kind, rows: usize) -> Metadata {
    let mut out = Metadata::new();
    let mut set = |key: &str, value: Field| out.set(format!("tokenizer.{key}"), value);
    let text = |text: &str| Field::String(text.to_owned());
    let (model, pre) = match kind {
        Kind::ByteLevel { pre, .. } => ("gpt2", pre.names[0]),
        Kind::SentencePiece { .. } => ("llama", "default"),
        Kind::Unigram { .. } => ("t5", "default"),
    };
    let byte_level = matches!(kind, Kind::ByteLevel { .. });
    set("ggml.model", text(model));
    set("ggml.pre", text(pre));
    let (tokens, kinds) = tokens(tokenizer, byte_level, rows);
    set("ggml.tokens", Field::Array(Array::String(tokens)));
    let padded = |scores: &[f32]| {
        let mut scores = scores.to_vec();
        scores.resize(rows, 0.0);
        Field::Array(Array::F32(scores))
    };
    match kind {
        Kind::ByteLevel { merges, .. } => {
            set("ggml.merges", Field::Array(Array::String(merges.clone())));
        }
        Kind::SentencePiece { scores } => set("ggml.scores", padded(scores)),
        Kind::Unigram { scores, charsmap, squeeze } => {
            set("ggml.scores", padded(scores));
            set("ggml.remove_extra_whitespaces", Field::Bool(*squeeze));
            if !charsmap.is_empty() {
                set("ggml.precompiled_charsmap", Field::Array(Array::U8(charsmap.clone())));
            }
        }
    }
    set("ggml.token_type", Field::Array(Array::I32(kinds)));
    roles(tokenizer, &mut set);
    if !byte_level {
        set("ggml.add_space_prefix", Field::Bool(puts_a_space_first(tokenizer)));
    }
    for (name, template) in tokenizer.templates() {
        match name.as_str() {
            "default" => set("chat_template", text(template)),
            other => set(&format!("chat_template.{other}"), text(template)),
        }
    }
    out
}

/// Texts and kinds of all ids. Tokens that are found whole in a text are written as that text.
fn tokens(tokenizer: &Tokenizer, byte_level: bool, rows: usize) -> (Vec<String>, Vec<i32>) {
    let unused = |id: usize| (format!("[PAD{id}]"), TokenKind::Unused);
    let one = |id: usize| {
        let number = u32::try_from(id).ok()?;
        let text = tokenizer.token_text(number)?;
        let unk = !byte_level && tokenizer.unk() == Some(number);
        Some(match tokenizer.kind(number) {
            TokenKind::UserDefined if !byte_level => {
                (text.replace('▁', " "), TokenKind::UserDefined)
            }
            _ if unk => (text.to_owned(), TokenKind::Unknown),
            kind => (text.to_owned(), kind),
        })
    };
    let all = (0..rows).map(|id| one(id).unwrap_or_else(|| unused(id)));
    all.map(|(text, kind)| (text, kind as i32)).unzip()
}

/// The ids with a role, and whether bos and eos are added.
fn roles(tokenizer: &Tokenizer, set: &mut dyn FnMut(&str, Field)) {
    let end_of_turn = tokenizer
        .stop_tokens()
        .iter()
        .copied()
        .find(|id| Some(*id) != tokenizer.eos() && tokenizer.kind(*id) == TokenKind::Control);
    let ids = [
        ("bos", tokenizer.bos()),
        ("eos", tokenizer.eos()),
        ("unknown", tokenizer.unk()),
        ("padding", tokenizer.pad()),
        ("eot", end_of_turn),
    ];
    for (role, id) in ids {
        if let Some(id) = id {
            set(&format!("ggml.{role}_token_id"), Field::U32(id));
        }
    }
    let adds = |ids: &[u32], id: Option<u32>| Field::Bool(id.is_some_and(|id| ids.contains(&id)));
    set("ggml.add_bos_token", adds(tokenizer.prefix(), tokenizer.bos()));
    set("ggml.add_eos_token", adds(tokenizer.suffix(), tokenizer.eos()));
}

fn puts_a_space_first(tokenizer: &Tokenizer) -> bool {
    let first = tokenizer.encode_plain("a", false).ok().and_then(|ids| ids.first().copied());
    first.and_then(|id| tokenizer.token_text(id)).is_some_and(|text| text.starts_with('▁'))
}
