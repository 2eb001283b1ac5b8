use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::{
    Error, Result, TokenKind,
    protobuf::{Field, fields},
    settings::{Added, Settings},
    vocabulary::MAX_TOKENS,
};

/// A SentencePiece model file, read.
///
/// **Source**: `sentencepiece_model.proto` in google/sentencepiece.
#[derive(Clone, Debug)]
pub(crate) struct SentencePiece {
    pub(crate) pieces: Vec<Piece>,
    algorithm: Algorithm,
    byte_fallback: bool,
    unk_id: u64,
    unk_piece: String,
    charsmap: Vec<u8>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) score: f32,
    pub(crate) kind: TokenKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Unigram,
    Bpe,
}

/// Longer pieces are refused: finding their merges is quadratic in the length. SentencePiece's
/// trainer makes none beyond 16 characters; makers have added runs of spaces up to 64.
const MAX_PIECE: usize = 512;

impl SentencePiece {
    /// Reads a `tokenizer.model`, called `file` in messages.
    pub(crate) fn read(file: &str, bytes: &[u8]) -> Result<Self> {
        let mut model = Self {
            pieces: Vec::new(),
            algorithm: Algorithm::Unigram,
            byte_fallback: false,
            unk_id: 0,
            unk_piece: "<unk>".to_owned(),
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
        };
        fields(bytes, |number, field| match (number, field) {
            (1, Field::Bytes(piece)) => model.piece(piece),
            (2, Field::Bytes(spec)) => model.trainer(spec),
            (3, Field::Bytes(spec)) => model.normalizer(spec),
            _ => Ok(()),
        })
        .map_err(|why| Error::broken(file, why))?;
        if model.pieces.is_empty() {
            return Err(Error::broken(file, "it holds no pieces"));
        }
        Ok(model)
    }

    /// A unigram model of which all that matters is known. `spaces`: whether one is put before the
    /// text, and whether runs of them become one.
    pub(crate) fn unigram_of(
        pieces: Vec<Piece>,
        unk_id: u64,
        charsmap: Vec<u8>,
        spaces: (bool, bool),
    ) -> Self {
        Self {
            byte_fallback: pieces.iter().any(|p| p.kind == TokenKind::Byte),
            pieces,
            algorithm: Algorithm::Unigram,
            unk_id,
            unk_piece: "<unk>".to_owned(),
            charsmap,
            add_dummy_prefix: spaces.0,
            remove_extra_whitespaces: spaces.1,
        }
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut piece = Piece { text: String::new(), score: 0.0, kind: TokenKind::Normal };
        fields(bytes, |number, field| {
            match (number, field) {
                (1, Field::Bytes(b)) => piece.text = text(b)?,
                (2, Field::Float(score)) => piece.score = score,
                (3, Field::Number(n)) => {
                    piece.kind = TokenKind::from_number(i64::try_from(n).unwrap_or(0));
                }
                _ => {}
            }
            Ok(())
        })?;
        let id = self.pieces.len();
        if piece.text.is_empty() || piece.text.len() > MAX_PIECE || piece.score.is_nan() {
            return Err(format!("piece {id} is empty, has no score, or exceeds {MAX_PIECE} bytes"));
        }
        if id >= MAX_TOKENS {
            return Err(format!("it holds more than {MAX_TOKENS} pieces"));
        }
        self.pieces.push(piece);
        Ok(())
    }

    fn trainer(&mut self, bytes: &[u8]) -> Result<(), String> {
        fields(bytes, |number, field| {
            match (number, field) {
                (3, Field::Number(1)) => self.algorithm = Algorithm::Unigram,
                (3, Field::Number(2)) => self.algorithm = Algorithm::Bpe,
                (3, Field::Number(n)) => return Err(format!("algorithm {n} is not supported")),
                (35, Field::Number(n)) => self.byte_fallback = n != 0,
                (40, Field::Number(id)) => self.unk_id = id,
                (45, Field::Bytes(b)) => self.unk_piece = text(b)?,
                _ => {}
            }
            Ok(())
        })
    }

    fn normalizer(&mut self, bytes: &[u8]) -> Result<(), String> {
        fields(bytes, |number, field| {
            match (number, field) {
                (2, Field::Bytes(map)) => self.charsmap = map.to_vec(),
                (3, Field::Number(n)) => self.add_dummy_prefix = n != 0,
                (4, Field::Number(n)) => self.remove_extra_whitespaces = n != 0,
                _ => {}
            }
            Ok(())
        })
    }

    /// Every piece's score, by id.
    pub(crate) fn scores(&self) -> Vec<f32> {
        self.pieces.iter().map(|p| p.score).collect()
    }

    /// The first piece of a kind of control token by its usual names.
    pub(crate) fn find(&self, names: &[&str]) -> Option<String> {
        let named = |name: &&str| self.pieces.iter().any(|p| p.text == **name);
        names.iter().find(|n| named(n)).map(|n| (*n).to_owned())
    }

    /// The same tokenizer as a `tokenizer.json`, by transformers' rules for the model's class.
    ///
    /// BPE merges are not in the file: every split of a piece into two other pieces is one, ranked
    /// by the id of the piece, which SentencePiece gives in order of score.
    pub(crate) fn to_json(&self, file: &str, settings: &Settings) -> Result<Value> {
        let model = match self.algorithm {
            Algorithm::Bpe => self.bpe(file)?,
            Algorithm::Unigram => self.unigram(),
        };
        let gemma = settings.class == "GemmaTokenizer" || !self.add_dummy_prefix;
        let mut json = match self.algorithm {
            Algorithm::Bpe if settings.class.is_empty() => self.own_pipeline(),
            Algorithm::Bpe if gemma => gemma_pipeline(),
            Algorithm::Bpe => llama_pipeline(settings),
            Algorithm::Unigram => self.unigram_pipeline(),
        };
        json["version"] = json!("1.0");
        json["added_tokens"] = self.added(settings);
        json["model"] = model;
        Ok(json)
    }

    fn bpe(&self, file: &str) -> Result<Value> {
        let mut ids: HashMap<&str, usize> = HashMap::with_capacity(self.pieces.len());
        for (id, piece) in self.pieces.iter().enumerate() {
            if ids.insert(&piece.text, id).is_some() {
                return Err(Error::broken(
                    file,
                    format!("the piece `{}` is twice in it", piece.text),
                ));
            }
        }
        let splits = |text: &str| {
            let cuts: Vec<usize> = text.char_indices().skip(1).map(|(at, _)| at).collect();
            let pairs = cuts.into_iter().map(|at| text.split_at(at));
            pairs
                .filter(|(a, b)| ids.contains_key(a) && ids.contains_key(b))
                .map(|(a, b)| json!([a, b]))
                .collect::<Vec<_>>()
        };
        let merges: Vec<Value> = self.pieces.iter().flat_map(|p| splits(&p.text)).collect();
        let vocab: Map<String, Value> =
            self.pieces.iter().zip(0..).map(|(p, id)| (p.text.clone(), json!(id))).collect();
        let spelt = self.pieces.iter().any(|p| p.text == self.unk_piece);
        Ok(json!({
            "type": "BPE",
            "unk_token": spelt.then_some(&self.unk_piece),
            "fuse_unk": true,
            "byte_fallback": self.byte_fallback,
            "vocab": vocab,
            "merges": merges,
        }))
    }

    fn unigram(&self) -> Value {
        let vocab: Vec<Value> = self.pieces.iter().map(|p| json!([p.text, p.score])).collect();
        json!({
            "type": "Unigram",
            "unk_id": self.unk_id,
            "byte_fallback": self.byte_fallback,
            "vocab": vocab,
        })
    }

    /// Control and user-defined pieces as added tokens; `tokenizer_config.json` has the last word
    /// on how each is matched.
    fn added(&self, settings: &Settings) -> Value {
        let added = self.pieces.iter().zip(0u32..).filter_map(|(piece, id)| {
            let special = match piece.kind {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                _ => return None,
            };
            let told = settings.added.iter().find(|a| a.text == piece.text && a.id.is_some());
            let default = Added { normalized: false, ..Added::plain(&piece.text, special) };
            let token = told.unwrap_or(&default);
            Some(json!({
                "id": id, "content": token.text, "special": token.special,
                "normalized": token.normalized, "single_word": token.single_word,
                "lstrip": token.lstrip, "rstrip": token.rstrip,
            }))
        });
        added.collect()
    }

    /// SentencePiece's own way, for a model without any `tokenizer_config.json`: a space comes
    /// before the text even when it starts with one, unless runs of spaces are made one first.
    fn own_pipeline(&self) -> Value {
        let replace = |regex: &str, by: &str| json!({"type": "Replace", "pattern": {"Regex": regex}, "content": by});
        let mut normalizers = Vec::new();
        if !self.charsmap.is_empty() {
            normalizers.push(
                json!({"type": "Precompiled", "precompiled_charsmap": base64(&self.charsmap)}),
            );
        }
        if self.remove_extra_whitespaces {
            normalizers.push(replace(r"\A +| +\z", ""));
            normalizers.push(replace(" {2,}", " "));
        }
        if self.add_dummy_prefix {
            normalizers.push(json!({"type": "Prepend", "prepend": "▁"}));
        }
        normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}));
        json!({
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "decoder": decoder(self.add_dummy_prefix),
        })
    }

    fn unigram_pipeline(&self) -> Value {
        let mut normalizers = Vec::new();
        if !self.charsmap.is_empty() {
            normalizers.push(
                json!({"type": "Precompiled", "precompiled_charsmap": base64(&self.charsmap)}),
            );
        }
        if self.remove_extra_whitespaces {
            normalizers.push(json!({"type": "Strip", "strip_left": false, "strip_right": true}));
            normalizers
                .push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}));
        }
        let scheme = if self.add_dummy_prefix { "always" } else { "never" };
        let mark = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
        json!({
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": mark,
            "decoder": mark,
        })
    }
}

/// How `LlamaTokenizer` of transformers reads text, whatever its `tokenizer.json` says: spaces
/// become `▁`, and one is put before the text (`legacy: true`: before each part between special
/// tokens) unless it starts with one.
///
/// **Source**: transformers 5, `models/llama/tokenization_llama.py`.
pub(crate) fn llama_pipeline(settings: &Settings) -> Value {
    let scheme = match (settings.add_prefix_space, settings.legacy) {
        (Some(false), _) => "never",
        (_, Some(true)) => "always",
        _ => "first",
    };
    json!({
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false,
        },
        "decoder": decoder(scheme != "never"),
    })
}

/// No space before the text. **Source**: transformers, `models/gemma/tokenization_gemma.py`.
fn gemma_pipeline() -> Value {
    json!({
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": decoder(false),
    })
}

fn decoder(strip: bool) -> Value {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if strip {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a piece is not UTF-8".to_owned())
}

/// As RFC 4648 has it, with padding: `tokenizer.json` holds the compiled table so.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let sextet = (bits >> (18 - 6 * i)) & 63;
            out.push(if i <= three.len() { char::from(ALPHABET[sextet as usize]) } else { '=' });
        }
    }
    out
}

/// The bytes of [`base64`]; `None` if it is not.
pub(crate) fn unbase64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for four in text.chunks(4) {
        let mut bits = 0u32;
        for c in four {
            let sextet = match c {
                b'A'..=b'Z' => c - b'A',
                b'a'..=b'z' => c - b'a' + 26,
                b'0'..=b'9' => c - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(sextet);
        }
        let [_, bytes @ ..] = (bits << (6 * (4 - four.len()))).to_be_bytes();
        out.extend_from_slice(bytes.get(..four.len() * 3 / 4)?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::{base64, unbase64};

    #[test]
    fn base64_pads_as_the_rfc_says() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        for (plain, coded) in cases {
            assert_eq!(base64(plain.as_bytes()), coded);
            assert_eq!(unbase64(coded).unwrap(), plain.as_bytes());
        }
    }
}
