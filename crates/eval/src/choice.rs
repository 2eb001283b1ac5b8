use lathe_api::Scorer;
use lathe_base::Progress;
use serde::{Deserialize, Serialize};

use crate::rows::Row;
use crate::{ChoiceSet, Encoder, Error, Role, Subject};

/// A question with several continuations, one of them right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChoiceItem {
    pub id: String,
    pub context: String,
    /// Each with the space that separates it from the context, if any.
    pub choices: Vec<String>,
    /// Index of the right one.
    pub answer: usize,
}

/// What was measured on one set of items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoicesRaw {
    pub name: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Index of the right choice of each item.
    pub answers: Vec<usize>,
    /// Bytes of each choice of each item, without its leading space.
    pub bytes: Vec<Vec<usize>>,
    /// The base first.
    pub models: Vec<ChoiceRun>,
}

/// One model's scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceRun {
    pub name: String,
    pub role: Role,
    /// ln p of each choice of each item, given the context, in nats.
    pub log_p: Vec<Vec<f64>>,
}

impl ChoicesRaw {
    /// An empty record of these items, to which runs are added.
    pub fn new(set: &ChoiceSet) -> Self {
        let bytes = |item: &ChoiceItem| item.choices.iter().map(|c| c.trim_start().len()).collect();
        Self {
            name: set.name.clone(),
            sha256: set.sha256.clone(),
            answers: set.items.iter().map(|i| i.answer).collect(),
            bytes: set.items.iter().map(bytes).collect(),
            models: Vec::new(),
        }
    }
}

/// Scores every choice of every item by the log-likelihood of its tokens after the context's.
///
/// Context and choice are tokenized together and the context alone; what the former has beyond the
/// latter's length is the choice (as lm-evaluation-harness does). Contexts too long for the model
/// lose their beginning.
///
/// # Errors
/// [`Error::Tokenizer`], [`Error::Engine`], [`Error::NotFinite`], [`Error::Cancelled`];
/// [`Error::TooShort`] where a choice has no tokens or does not fit the context.
pub fn score_choices(
    subject: &Subject<'_>,
    set: &ChoiceSet,
    encoder: Encoder<'_>,
    progress: &dyn Progress,
) -> Result<ChoiceRun, Error> {
    let reader = Reader { subject, encoder };
    let mut scorer = subject
        .engine
        .scorer()
        .map_err(|source| Error::Engine { model: subject.name.into(), source })?;
    let mut log_p = Vec::with_capacity(set.items.len());
    for (done, item) in set.items.iter().enumerate() {
        progress.check()?;
        let choices = item.choices.iter().map(|c| reader.score(scorer.as_mut(), item, c));
        log_p.push(choices.collect::<Result<Vec<_>, _>>()?);
        progress.at("items answered", done as u64 + 1, set.items.len() as u64);
    }
    Ok(ChoiceRun { name: subject.name.into(), role: subject.role, log_p })
}

/// Tokens fed at a time, which bounds the logits held to this many rows of V.
const CHUNK: usize = 64;

struct Reader<'a> {
    subject: &'a Subject<'a>,
    encoder: Encoder<'a>,
}

impl Reader<'_> {
    fn score(
        &self,
        scorer: &mut dyn Scorer,
        item: &ChoiceItem,
        choice: &str,
    ) -> Result<f64, Error> {
        let (tokens, first) = self.tokens(item, choice)?;
        scorer.reset();
        let mut total = 0.0;
        let mut position = 0;
        for chunk in tokens[..tokens.len() - 1].chunks(CHUNK) {
            let logits = scorer
                .feed(chunk)
                .map_err(|source| Error::Engine { model: self.subject.name.into(), source })?;
            for row in logits.rows() {
                position += 1;
                if position >= first {
                    let target = tokens[position] as usize;
                    let log_p = Row::new(row).and_then(|r| row.get(target).map(|&v| r.log_p(v)));
                    total += log_p.ok_or_else(|| self.not_finite(item, position))?;
                }
            }
        }
        if position + 1 != tokens.len() {
            let (expected, found) = (tokens.len() - 1, position);
            return Err(Error::Shape { model: self.subject.name.into(), expected, found });
        }
        Ok(total)
    }

    fn not_finite(&self, item: &ChoiceItem, position: usize) -> Error {
        let place = format!("item {}", item.id);
        Error::NotFinite { model: self.subject.name.into(), place, position }
    }

    /// The tokens to score and the index of the first that belongs to the choice, at least 1.
    fn tokens(&self, item: &ChoiceItem, choice: &str) -> Result<(Vec<u32>, usize), Error> {
        let encode = |text: &str| {
            (self.encoder.encode)(text)
                .map_err(|why| Error::Tokenizer { document: format!("item {}", item.id), why })
        };
        let context = encode(&item.context)?.len();
        let mut tokens: Vec<u32> = self.encoder.bos.into_iter().collect();
        let bos = tokens.len();
        tokens.extend(encode(&format!("{}{choice}", item.context))?);
        let limit = self.subject.engine.info().context;
        // Without BOS the first token of the context predicts nothing and is predicted by nothing.
        let first = (bos + context).max(1);
        let choice_tokens = tokens.len().saturating_sub(first);
        let vocab = self.subject.engine.info().vocab;
        if tokens.iter().any(|&t| t as usize >= vocab) {
            let why = format!("a token id is outside the model's vocabulary of {vocab}");
            return Err(Error::Tokenizer { document: format!("item {}", item.id), why });
        }
        if choice_tokens == 0 || choice_tokens + bos + 1 > limit {
            let what = format!("item {} (choice {choice:?})", item.id);
            return Err(Error::TooShort { what, needed: 1, found: choice_tokens });
        }
        let over = tokens.len().saturating_sub(limit + 1);
        tokens.drain(bos..bos + over);
        Ok((tokens, first - over))
    }
}
