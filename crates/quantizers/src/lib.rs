//! From a checkpoint in one format to a checkpoint in another.
//!
//! A [`Recipe`] says what is wanted, a [`Plan`] what becomes of every tensor and how large the
//! result will be, and [`quantize`] carries it out tensor by tensor: what is in memory at any time
//! is one coded tensor and one expanded row per thread, whatever the model's size. How codes are
//! chosen is a [`Quantizer`]'s.

mod awq;
mod block;
mod calibrated;
mod calibration;
mod curvature;
mod error;
mod fingerprint;
mod fold;
mod gptq;
mod job;
mod layers;
mod linalg;
mod loss;
mod made;
mod measure;
mod method;
pub mod mix;
mod panel;
mod plan;
mod prune;
mod quantizer;
mod recipe;
mod revise;
mod rotate;
mod scaled;
mod smooth;
mod source;
mod stats;
mod summary;
mod transform;
mod weights;

pub use awq::Awq;
pub use block::{Block, Dense};
pub use calibrated::{Calibrated, Estimate, Measured, measure_importance, quantize_calibrated};
pub use calibration::{Calibration, CalibrationData, Draw};
pub use error::Error;
pub use gptq::{Gptq, Order};
pub use job::{About, Job, quantize};
pub use layers::{Shortened, Similarity, measure_similarity};
pub use loss::output_error;
pub use method::{METHODS, Method, Pipeline, Settings};
pub use mix::{MIXES, Matrix, Mix, Overrides, Rule, Shape, mix_by_name};
pub use plan::{Input, Plan, Planned};
pub use prune::{Criterion, Pattern, Prune, keeps_zeros};
pub use quantizer::{Coded, Quantizer, Rtn, Search, Weighted};
pub use recipe::{Recipe, SCHEMES, Scheme, Target};
pub use rotate::{Hadamard, Rotated};
pub use smooth::Smooth;
pub use stats::{Needs, Stats};
pub use summary::{Done, Summary};
pub use transform::{Context, Transform};
pub use weights::{Stored, Weights};
