//! Makes a model in another format: what `quantize` and `optimize` share.

use std::path::Path;

use lathe_base::Progress;
use lathe_files::{Checkpoint, gguf::Metadata};
use lathe_models::Model;
use lathe_quantizers::{About, Job, Plan, Rtn, Stored, Summary, Target, quantize};

use crate::open;

/// A plan and where its result goes.
pub(crate) struct Making<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) model: &'a Model,
    pub(crate) plan: &'a Plan,
    /// What the result says that it is called.
    pub(crate) name: &'a str,
    pub(crate) out: &'a Path,
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
        let job = Job {
            checkpoint: self.checkpoint,
            weights: &Stored { model: self.model, checkpoint: self.checkpoint },
            plan: self.plan,
            out: self.out,
            replace: self.replace,
            quantizer: &Rtn,
            imatrix: None,
            threads: self.threads,
            measure: self.measure,
            about: &about,
        };
        let mut summary = quantize(&job, progress)?;
        summary.notes.extend(notes);
        Ok(summary)
    }

    /// The tokenizer's keys, where a GGUF is made of a folder, and where llama.cpp may read a text
    /// differently.
    fn tokenizer(&self) -> anyhow::Result<(Metadata, Vec<String>)> {
        if self.plan.target != Target::Gguf || self.checkpoint.gguf.is_some() {
            return Ok((Metadata::new(), Vec::new()));
        }
        let export = open::tokenizer(self.checkpoint)?.export(self.model.spec.vocab)?;
        Ok((export.metadata, export.notes))
    }
}
