//! How good a model is, and how far from the model it was made of: perplexity in every convention
//! in use, KL divergence without stored logits, multiple choice.
//!
//! A text becomes [`Texts`], a [`Plan`] cuts it into segments by one [`Convention`], and
//! [`compare`] feeds the same segments to the base and its candidates and keeps sums per segment: a
//! [`Pass`]. [`PassFigures`] are computed from a `Pass` alone, so a report can be checked from what
//! it kept.

mod choice;
mod choice_figures;
mod choice_read;
mod compare;
mod divergence;
mod documents;
mod error;
mod figures;
mod histogram;
mod jsonl;
mod plan;
mod raw;
mod rows;
mod scoring;
mod split;

pub use choice::{ChoiceItem, ChoiceRun, ChoicesRaw, score_choices};
pub use choice_figures::{ChoiceFigures, ChoiceModel, ChoiceVersus, Rule};
pub use choice_read::{ChoiceSet, read_choices};
pub use compare::{CompareOptions, Subject, compare};
pub use divergence::Divergence;
pub use documents::{Document, ReadOptions, Render, Texts, read_texts};
pub use error::Error;
pub use figures::{Figure, ModelFigures, NoiseFloor, PassFigures, Units, Versus};
pub use histogram::Histogram;
pub use plan::{Convention, Encoder, Plan, Segment};
pub use raw::{Against, DataRaw, DocumentRaw, ModelPass, Pass, QualityRaw, Role, SegmentRaw};
pub use split::Split;
