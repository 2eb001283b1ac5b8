use lathe_api::Info;
use serde::{Deserialize, Serialize};

use crate::{ChoicesRaw, Convention, Error, Histogram, Plan, Texts};

/// Everything that was measured about quality, as sums from which every figure can be computed
/// again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QualityRaw {
    pub data: DataRaw,
    /// One per convention.
    pub passes: Vec<Pass>,
    /// One per set of items.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<ChoicesRaw>,
}

/// Which text was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataRaw {
    pub name: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    pub bytes: u64,
    pub documents: Vec<DocumentRaw>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentRaw {
    pub id: String,
    pub bytes: u64,
    /// Tokens without BOS.
    pub tokens: u64,
}

impl DataRaw {
    /// Describes the texts of which `plan` was made.
    pub fn new(texts: &Texts, plan: &Plan) -> Self {
        let documents = texts.documents.iter().zip(&plan.document_tokens);
        let documents = documents.map(|(d, &tokens)| DocumentRaw {
            id: d.id.clone(),
            bytes: d.text.len() as u64,
            tokens: tokens as u64,
        });
        Self {
            name: texts.name.clone(),
            sha256: texts.sha256.clone(),
            bytes: texts.bytes,
            documents: documents.collect(),
        }
    }
}

/// One text scored in one convention by the base and any number of other models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pass {
    pub convention: Convention,
    /// To print beside every figure.
    pub label: String,
    /// [`Plan::token_hash`]: equal for all models here, because all were fed the same ids.
    pub token_hash: String,
    pub vocab: usize,
    pub segments: Vec<SegmentRaw>,
    /// Bytes of each document, where the documents' tokens all count; else empty.
    pub document_bytes: Vec<u64>,
    /// The base first.
    pub models: Vec<ModelPass>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRaw {
    pub document: u32,
    /// Tokens that count.
    pub tokens: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelPass {
    pub name: String,
    pub role: Role,
    pub engine: Info,
    /// Σ −ln p of each segment's tokens, in nats.
    pub nll: Vec<f64>,
    /// Sums against the base per segment; empty for the base.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub against: Vec<Against>,
    /// KL divergence of single tokens, per document; empty for the base.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kl_histograms: Vec<Histogram>,
}

/// What a model is in a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Base,
    Candidate,
    /// The base again with its arithmetic rounded (to bf16): what rounding alone does, below which
    /// no difference means anything.
    Floor,
}

/// Sums over one segment's tokens, of a model against the base. p is the base, q the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Against {
    /// Σ KL(p‖q), nats.
    pub kl: f64,
    pub kl_squares: f64,
    /// The largest KL of a token.
    pub kl_max: f64,
    /// Tokens at which both have the same likeliest next token.
    pub same_top: u32,
    /// Σ q(t) − p(t) of the token t that came.
    pub delta_p: f64,
    pub delta_p_squares: f64,
    /// Σ q(top of p) − p(top of p): confidence lost.
    pub delta_top: f64,
}

impl Pass {
    /// Adds the other models of a pass over the same tokens against the same base, so that
    /// candidates need not all be loaded at once.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where tokens, names or the base's own results differ.
    pub fn merge(&mut self, other: Pass) -> Result<(), Error> {
        let mismatch = |why: &str| Err(Error::Mismatch { why: why.into() });
        if self.token_hash != other.token_hash || self.segments != other.segments {
            return mismatch("they were made on different tokens");
        }
        let mut models = other.models.into_iter();
        let (Some(ours), Some(theirs)) = (self.models.first(), models.next()) else {
            return mismatch("there is no base");
        };
        // A base on other threads may round differently, but not by a millionth.
        let same = |a: &f64, b: &f64| (a - b).abs() <= 1e-6 * a.abs().max(1e-3);
        if !ours.nll.iter().zip(&theirs.nll).all(|(a, b)| same(a, b)) {
            return mismatch("their base models give different probabilities");
        }
        for model in models {
            if self.models.iter().any(|m| m.name == model.name) {
                return mismatch(&format!("{} is in both", model.name));
            }
            self.models.push(model);
        }
        Ok(())
    }

    /// Checks that every model has one entry per segment, as a file read back might not.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn check(&self) -> Result<(), Error> {
        let n = self.segments.len();
        let whole = |m: &ModelPass| {
            let base = m.role == Role::Base;
            m.nll.len() == n && m.against.len() == if base { 0 } else { n }
        };
        let why = match (self.models.iter().find(|m| !whole(m)), self.models.first()) {
            (Some(broken), _) => format!("{} does not have a sum for each segment", broken.name),
            (_, Some(first)) if first.role == Role::Base => return Ok(()),
            _ => "the first model is not the base".into(),
        };
        Err(Error::Mismatch { why })
    }
}
