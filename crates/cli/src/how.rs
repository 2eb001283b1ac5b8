//! How codes are chosen: what a recipe of formats leaves open.

use lathe_base::Bytes;
use lathe_files::Imatrix;
use lathe_quantizers::{Calibration, Method, Needs, Pipeline, Rtn};

/// A method set up, and what it works with.
#[derive(Debug)]
pub(crate) struct How {
    pub(crate) pipeline: Pipeline,
    pub(crate) imatrix: Option<Imatrix>,
    /// Where the method needs it.
    pub(crate) calibration: Option<Calibration>,
    /// Whether every stage of a layer is calibrated with the stages before it quantized.
    pub(crate) sequential: bool,
    pub(crate) max_memory: Option<Bytes>,
}

impl How {
    /// Round to nearest.
    pub(crate) fn nearest() -> Self {
        Self {
            pipeline: Pipeline::of(Rtn),
            imatrix: None,
            calibration: None,
            sequential: true,
            max_memory: None,
        }
    }

    /// Whether the job goes layer by layer.
    pub(crate) fn by_layer(&self) -> bool {
        let Pipeline { transforms, .. } = &self.pipeline;
        self.pipeline.needs() > Needs::Nothing
            || !transforms.is_empty()
            || self.calibration.is_some()
    }
}

/// Every method with its line, for help.
pub(crate) fn methods() -> String {
    let width = lathe_quantizers::METHODS.iter().map(|m| m.name.len()).max().unwrap_or(0);
    let needs = |method: &Method| match method.needs {
        Needs::Nothing => "",
        _ => " (calibrates)",
    };
    let line = |m: &Method| format!("  {:width$}  {}{}\n", m.name, m.about, needs(m));
    lathe_quantizers::METHODS.iter().map(line).collect()
}
