//! Makes a model in another format: what `quantize` and `optimize` share.

use std::path::Path;

use lathe_base::{Bytes, Progress};
use lathe_files::{Checkpoint, gguf::Metadata};
use lathe_quantizers::{
    About, Calibrated, Calibration, Job, Plan, Summary, Target, Weights, quantize,
    quantize_calibrated,
};

use crate::{how::How, open};

/// A plan and where its result goes.
pub(crate) struct Making<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    /// The checkpoint's weights, or a view of them.
    pub(crate) weights: &'a dyn Weights,
    pub(crate) plan: &'a Plan,
    /// What the result says that it is called.
    pub(crate) name: &'a str,
    pub(crate) out: &'a Path,
    pub(crate) how: &'a How,
    pub(crate) threads: usize,
    /// Whether an older model of that name may be replaced.
    pub(crate) replace: bool,
    /// Whether to compare every tensor with its source.
    pub(crate) measure: bool,
}

impl Making<'_> {
    /// Makes the model, or goes on where an interrupted run stopped.
    pub(crate) fn carry_out(&self, progress: &dyn Progress) -> anyhow::Result<Summary> {
        let (tokenizer, notes) = self.tokenizer()?;
        let about = About { name: self.name.to_owned(), tokenizer };
        let job = self.job(&about);
        let mut summary = match self.how.by_layer() {
            true => self.with_calibration(job, |calibrated| {
                Ok(quantize_calibrated(calibrated, progress)?)
            })?,
            false => quantize(&job, progress)?,
        };
        summary.notes.extend(notes);
        Ok(summary)
    }

    /// The most memory that the job takes, estimated.
    pub(crate) fn peak(&self) -> anyhow::Result<Bytes> {
        let about = About { name: self.name.to_owned(), tokenizer: Metadata::new() };
        match self.how.by_layer() {
            true => self
                .with_calibration(self.job(&about), |calibrated| Ok(calibrated.estimate()?.peak)),
            false => Ok(self.plan.largest()),
        }
    }

    fn job<'b>(&'b self, about: &'b About) -> Job<'b> {
        Job {
            checkpoint: self.checkpoint,
            weights: self.weights,
            plan: self.plan,
            out: self.out,
            replace: self.replace,
            quantizer: self.how.pipeline.quantizer.as_ref(),
            imatrix: self.how.imatrix.as_ref(),
            threads: self.threads,
            measure: self.measure,
            about,
        }
    }

    fn with_calibration<T>(
        &self,
        job: Job<'_>,
        act: impl FnOnce(&Calibrated<'_>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let nothing = Calibration::of(Vec::new(), "no texts");
        act(&Calibrated {
            job,
            transforms: &self.how.pipeline.transforms,
            calibration: self.how.calibration.as_ref().unwrap_or(&nothing),
            sequential: self.how.sequential,
            max_memory: self.how.max_memory,
        })
    }

    /// The tokenizer's keys, where a GGUF is made of a folder, and where llama.cpp may read a text
    /// differently.
    fn tokenizer(&self) -> anyhow::Result<(Metadata, Vec<String>)> {
        if self.plan.target != Target::Gguf || self.checkpoint.gguf.is_some() {
            return Ok((Metadata::new(), Vec::new()));
        }
        let export = open::tokenizer(self.checkpoint)?.export(self.weights.spec().vocab)?;
        Ok((export.metadata, export.notes))
    }
}
