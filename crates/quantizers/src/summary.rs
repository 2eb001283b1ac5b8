use lathe_base::{Bytes, Seconds};
use serde::Serialize;

use crate::{CalibrationData, Target};

/// What [`crate::quantize`] did.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The quantizer's name.
    pub quantizer: &'static str,
    /// The format of the matrices inside the layers.
    pub format: &'static str,
    /// The container that was written.
    pub target: Target,
    /// What was calibrated with, where something was.
    pub calibration: Option<CalibrationData>,
    /// Bytes of all tensors before.
    pub bytes_in: Bytes,
    /// Bytes of all tensors after, as coded: what the engine will hold.
    pub bytes_out: Bytes,
    /// Stored bits per parameter after, embeddings, head and vectors included.
    pub bits_per_weight: f64,
    /// How long it took, without what an interrupted run had done before.
    pub took: Seconds,
    /// Tensors taken over from an interrupted run.
    pub resumed: usize,
    /// What a reader should know: tensors that got another format than the one asked for.
    pub notes: Vec<String>,
    /// Every tensor, in the order of the file.
    pub tensors: Vec<Done>,
}

/// One tensor that was made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Done {
    /// Its name in the result.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Its format in the result.
    pub format: &'static str,
    /// Its coded bytes.
    pub bytes: Bytes,
    /// Whether it is the source's, byte for byte.
    pub copied: bool,
    /// Mean square of (weight − coded weight); `None` where it was not measured, be it because
    /// nothing was asked, nothing changed, or an earlier run had made the tensor.
    pub mean_square_error: Option<f64>,
    /// Mean square of the weights, to hold the error against.
    pub mean_square: Option<f64>,
    /// Weights that are exactly zero as coded; `None` as above.
    pub zeros: Option<u64>,
}
