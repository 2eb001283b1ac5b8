use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::documents::hex;
use crate::{Error, Split, Texts};

/// How a text is cut for scoring, and which tokens of each cut count.
///
/// Perplexities in different conventions cannot be compared: the same Llama-2-7B reads 5.47 in
/// `Windows` of 2048, 5.12 in `Windows` of 4096 and about 5.80 in `LlamaCpp` of 512 on WikiText-2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Convention {
    /// Each document alone, after the token that begins a text (BOS): every token of it counts.
    /// Documents longer than the context are cut into pieces that each begin anew. The convention
    /// for KL divergence, because a deployed model sees texts from their beginning.
    Documents,
    /// The whole text in windows that do not overlap, all but the first token of each counting;
    /// what does not fill the last window is left out.
    ///
    /// Source: GPTQ (arXiv 2210.17323) and AWQ (arXiv 2306.00978), context 2048; papers since
    /// Llama 2 also use the model's own 4096.
    Windows { context: usize },
    /// As `Windows`, but the first token of each window is replaced by BOS where the model has one,
    /// and the first half of each window serves as context only: tokens `context / 2 + 1` on count.
    ///
    /// Source: llama.cpp's `llama-perplexity` with its default context of 512.
    LlamaCpp { context: usize },
    /// Windows that advance by `stride`; each token counts once, in the first window that holds it,
    /// with at least `window - stride` tokens before it.
    ///
    /// Source: Hugging Face's guide "Perplexity of fixed-length models". Its script weights a
    /// window's mean by one token less than it holds; here each token has the same weight, which
    /// changes the fourth digit.
    Sliding { window: usize, stride: usize },
}

impl Convention {
    /// All conventions with their published numbers, clipped to a model's context; what becomes the
    /// same by clipping is there once.
    pub fn all(context: usize) -> Vec<Convention> {
        let mut all = vec![Convention::Documents];
        let published = [
            Convention::Windows { context: 2048 },
            Convention::Windows { context: 4096 },
            Convention::LlamaCpp { context: 512 },
            Convention::Sliding { window: 512, stride: 256 },
        ];
        for convention in published.map(|c| c.clip(context)) {
            if !all.contains(&convention) {
                all.push(convention);
            }
        }
        all
    }

    /// The same convention in windows that fit the model's context. A stride keeps its share.
    pub fn clip(self, limit: usize) -> Convention {
        match self {
            Convention::Documents => self,
            Convention::Windows { context } => Convention::Windows { context: context.min(limit) },
            Convention::LlamaCpp { context } => {
                Convention::LlamaCpp { context: context.min(limit) }
            }
            Convention::Sliding { window, stride } if window > limit => {
                let stride = (stride * limit / window).max(1);
                Convention::Sliding { window: limit, stride }
            }
            sliding => sliding,
        }
    }

    /// What to print beside a figure, so that it is never taken for another.
    pub fn label(&self) -> String {
        match *self {
            Convention::Documents => "each document from its beginning".into(),
            Convention::Windows { context } => {
                format!("context {context} (GPTQ/AWQ papers: separate windows)")
            }
            Convention::LlamaCpp { context } => {
                format!("context {context} (llama.cpp: second half of each window)")
            }
            Convention::Sliding { window, stride } => {
                format!("window {window}, stride {stride} (Hugging Face sliding window)")
            }
        }
    }

    /// The label of `self` once it is clipped to a model's context, saying so where it was.
    fn clipped_label(self, context: usize) -> String {
        let clipped = self.clip(context);
        if clipped == self {
            return self.label();
        }
        let asked = match self {
            Convention::Documents => 0,
            Convention::Windows { context } | Convention::LlamaCpp { context } => context,
            Convention::Sliding { window, .. } => window,
        };
        format!("{}, clipped from {asked} to the model's context", clipped.label())
    }
}

/// Turns text into token ids.
#[derive(Clone, Copy)]
pub struct Encoder<'a> {
    /// Token ids of a text, without special tokens around it.
    pub encode: &'a dyn Fn(&str) -> Result<Vec<u32>, String>,
    /// The token that begins a text, if the model was trained with one.
    pub bos: Option<u32>,
}

/// What to feed and which of it to score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub convention: Convention,
    pub label: String,
    pub segments: Vec<Segment>,
    /// Tokens of each document, without BOS.
    pub document_tokens: Vec<usize>,
}

/// One sequence, fed from an empty state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub tokens: Vec<u32>,
    /// Tokens from this index on count; at least 1, because the first has nothing to predict it.
    pub first_scored: usize,
    /// The document that it belongs to, or that its middle falls into.
    pub document: usize,
}

impl Segment {
    /// How many of its tokens count.
    pub fn scored(&self) -> usize {
        self.tokens.len().saturating_sub(self.first_scored)
    }

    /// What to feed: all but the last token, which predicts nothing that counts.
    pub fn fed(&self) -> &[u32] {
        &self.tokens[..self.tokens.len().saturating_sub(1)]
    }
}

impl Plan {
    /// Cuts `texts` by `convention`, clipped to the model's `context`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`]; [`Error::ContextTooShort`]; [`Error::TooShort`] where the text has
    /// nothing to score.
    pub fn new(
        convention: Convention,
        texts: &Texts,
        encoder: Encoder<'_>,
        context: usize,
    ) -> Result<Self, Error> {
        if context < 4 {
            return Err(Error::ContextTooShort { context });
        }
        let documents = texts
            .documents
            .iter()
            .map(|d| encode(&encoder, &d.id, &d.text))
            .collect::<Result<Vec<_>, _>>()?;
        let document_tokens: Vec<usize> = documents.iter().map(Vec::len).collect();
        let label = convention.clipped_label(context);
        let convention = convention.clip(context);
        let mut segments = match convention {
            Convention::Documents => by_document(&documents, encoder.bos, context),
            Convention::Windows { context } => {
                windows(&stream(texts, encoder, true)?, context, 1, None)
            }
            Convention::LlamaCpp { context } => {
                windows(&stream(texts, encoder, false)?, context, context / 2 + 1, encoder.bos)
            }
            Convention::Sliding { window, stride } => {
                sliding(&stream(texts, encoder, true)?, window, stride)
            }
        };
        segments.retain(|s| s.scored() > 0);
        if segments.is_empty() {
            let found = document_tokens.iter().sum();
            return Err(Error::TooShort { what: label, needed: 4, found });
        }
        if convention != Convention::Documents {
            attribute(&mut segments, &document_tokens);
        }
        Ok(Self { convention, label, segments, document_tokens })
    }

    /// Tokens that count.
    pub fn scored(&self) -> usize {
        self.segments.iter().map(Segment::scored).sum()
    }

    /// Tokens that must be fed: those scored, and those before them.
    pub fn fed(&self) -> usize {
        self.segments.iter().map(|s| s.fed().len()).sum()
    }

    /// Checks that the model knows every token.
    pub(crate) fn check_vocabulary(&self, model: &str, vocab: usize) -> Result<(), Error> {
        let outside = |s: &&Segment| s.tokens.iter().any(|&t| t as usize >= vocab);
        match self.segments.iter().find(outside) {
            Some(s) => Err(Error::Tokenizer {
                document: format!("document {}", s.document + 1),
                why: format!(
                    "it gives token ids of {vocab} and above, but {model} knows {vocab} tokens: \
                     tokenizer and model do not belong together"
                ),
            }),
            None => Ok(()),
        }
    }

    /// SHA-256 of all token ids and of which count: two models were measured on the same thing if
    /// and only if it is equal.
    pub fn token_hash(&self) -> String {
        let mut hash = Sha256::new();
        for segment in &self.segments {
            hash.update((segment.tokens.len() as u64).to_le_bytes());
            hash.update((segment.first_scored as u64).to_le_bytes());
            for token in &segment.tokens {
                hash.update(token.to_le_bytes());
            }
        }
        hex(&hash.finalize())
    }
}

fn encode(encoder: &Encoder<'_>, document: &str, text: &str) -> Result<Vec<u32>, Error> {
    (encoder.encode)(text)
        .map_err(|why| Error::Tokenizer { document: format!("document {document}"), why })
}

/// The whole text as tokens, after BOS.
fn stream(texts: &Texts, encoder: Encoder<'_>, as_rows: bool) -> Result<Vec<u32>, Error> {
    let text = match texts.split {
        Split::Headings if as_rows => texts.joined_as_rows(),
        _ => texts.joined(),
    };
    let mut tokens: Vec<u32> = encoder.bos.into_iter().collect();
    tokens.extend(
        (encoder.encode)(&text)
            .map_err(|why| Error::Tokenizer { document: texts.name.clone(), why })?,
    );
    Ok(tokens)
}

fn by_document(documents: &[Vec<u32>], bos: Option<u32>, context: usize) -> Vec<Segment> {
    let piece = context - usize::from(bos.is_some());
    let mut segments = Vec::new();
    for (document, tokens) in documents.iter().enumerate() {
        for piece in tokens.chunks(piece) {
            let tokens = bos.into_iter().chain(piece.iter().copied()).collect();
            segments.push(Segment { tokens, first_scored: 1, document });
        }
    }
    segments
}

/// A text shorter than one window is a shorter window.
fn windows(tokens: &[u32], size: usize, first_scored: usize, bos: Option<u32>) -> Vec<Segment> {
    let (size, first_scored) = match tokens.len() < size {
        true if first_scored > 1 => (tokens.len(), tokens.len() / 2 + 1),
        true => (tokens.len(), first_scored),
        false => (size, first_scored),
    };
    tokens
        .chunks_exact(size.max(1))
        .map(|window| {
            let mut tokens = window.to_vec();
            tokens[0] = bos.unwrap_or(tokens[0]);
            Segment { tokens, first_scored, document: 0 }
        })
        .collect()
}

fn sliding(tokens: &[u32], window: usize, stride: usize) -> Vec<Segment> {
    let (mut segments, mut begin, mut counted) = (Vec::new(), 0, 1);
    loop {
        let end = (begin + window).min(tokens.len());
        if end > counted {
            let first_scored = counted - begin;
            let tokens = tokens[begin..end].to_vec();
            segments.push(Segment { tokens, first_scored, document: 0 });
            counted = end;
        }
        if end == tokens.len() {
            return segments;
        }
        begin += stride.clamp(1, window - 1);
    }
}

/// Gives each segment of the joined text the document that the middle of its scored part lies in.
///
/// Documents tokenized alone and the joined text differ by a few tokens at the seams, so positions
/// are scaled: good enough to say which segments depend on each other.
fn attribute(segments: &mut [Segment], document_tokens: &[usize]) {
    let total: usize = document_tokens.iter().sum();
    let scored: usize = segments.iter().map(Segment::scored).sum();
    let (mut done, mut document, mut end) = (0usize, 0, document_tokens[0]);
    for segment in segments {
        let middle = done + segment.scored() / 2;
        let place = (middle as u128 * total as u128 / scored.max(1) as u128) as usize;
        while place >= end && document + 1 < document_tokens.len() {
            document += 1;
            end += document_tokens[document];
        }
        segment.document = document;
        done += segment.scored();
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
