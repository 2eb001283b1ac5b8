//! The statistics behind every figure of Lathe: pure, seeded, and the same on every machine.
//!
//! Three rules hold throughout. The unit of resampling is what is independent (a round, a request,
//! a document), never a token. Comparisons are paired: both sides see the same rounds or the same
//! documents. And where the data are too few for a figure there is a typed error, never a guess.
//!
//! Source: Miller 2024 (arXiv 2411.00640) for paired and clustered errors of evaluations; Efron and
//! Tibshirani 1993 for the bootstraps.

mod bootstrap;
mod clusters;
mod error;
mod interval;
mod noise;
mod order;
mod paired;
mod proportion;
mod special;
mod summary;
mod verdict;

pub use bootstrap::{Bootstrap, Kind, SMALLEST_BOOTSTRAP};
pub use clusters::{Unit, ratio_of_sums};
pub use error::Error;
pub use interval::{Interval, Method};
pub use noise::{Noise, Trend, kendall, noise, outliers, rounds_to_decide};
pub use order::{median_interval, quantile_interval};
pub use paired::{mean_interval, paired_difference, paired_ratio, paired_ratio_of, sign_test};
pub use proportion::wilson;
pub use special::{normal_cdf, normal_quantile, student_cdf, student_quantile};
pub use summary::{Ecdf, mad, mean, median, quantile, quantiles, standard_deviation, trimmed_mean};
pub use verdict::{Bound, Verdict, holm, shared_level};
