//! Makes a model whose formats are chosen for a budget: what `quantize` and `optimize` share.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use lathe_base::{Bytes, Progress};
use lathe_files::{Checkpoint, gguf::Metadata};
use lathe_formats::AnyFormat;
use lathe_models::{Kind, Spec};
use lathe_quantizers::{
    About, Calibration, Gptq, Job, Plan, Quantizer, Recipe, Search, Target, Weights,
    mix::{Budget, Expected, Fit, Fitted, expected, fit},
};

use crate::open;

/// Memory for the products of inputs.
const MOST_HESSIANS: u64 = 4 << 30;

/// A model, how large it may become, and where it goes.
pub(crate) struct Fitting<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    /// The checkpoint's weights, or a view of them.
    pub(crate) weights: &'a dyn Weights,
    /// What becomes of everything that is not free.
    pub(crate) plan: &'a Plan,
    /// What the plan was made from.
    pub(crate) recipe: &'a Recipe,
    pub(crate) budget: Budget,
    /// Bytes of the budget that are not the file's.
    pub(crate) reserved: Bytes,
    /// The formats to choose among; all that suit where there are none.
    pub(crate) formats: &'a [&'static dyn AnyFormat],
    pub(crate) calibration: &'a Calibration,
    /// What the result says that it is called.
    pub(crate) name: &'a str,
    pub(crate) out: &'a Path,
    pub(crate) threads: usize,
    pub(crate) max_memory: Option<Bytes>,
    /// Whether an older model of that name may be replaced.
    pub(crate) replace: bool,
    /// Whether to compare every tensor with its source.
    pub(crate) measure: bool,
}

impl Fitting<'_> {
    /// Searches and makes the model, or goes on where an interrupted run stopped.
    pub(crate) fn carry_out(&self, progress: &dyn Progress) -> anyhow::Result<Fitted> {
        let tokenizer = match self.plan.target == Target::Gguf && self.checkpoint.gguf.is_none() {
            true => open::tokenizer(self.checkpoint)?.export(self.weights.spec().vocab)?.metadata,
            false => Metadata::new(),
        };
        // Measurements are kept before there is anything else.
        if let Some(folder) = self.out.parent() {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        self.with(tokenizer, |request| Ok(fit(request, progress)?))
    }

    /// What [`Self::carry_out`] takes, where so many operations are done in a second.
    pub(crate) fn expected(&self, rate: f64) -> anyhow::Result<Expected> {
        self.with(Metadata::new(), |fit| Ok(expected(fit, rate)?))
    }

    /// Where measurements are kept.
    pub(crate) fn journal(&self) -> PathBuf {
        self.out.with_added_extension("measured.jsonl")
    }

    fn with<T>(
        &self,
        tokenizer: Metadata,
        act: impl FnOnce(&Fit<'_>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let (gptq, search) = (Gptq::default(), Search);
        let quantizer: &dyn Quantizer =
            if holds_hessians(self.weights.spec()) { &gptq } else { &search };
        let job = Job {
            checkpoint: self.checkpoint,
            weights: self.weights,
            plan: self.plan,
            out: self.out,
            replace: self.replace,
            quantizer,
            imatrix: None,
            threads: self.threads,
            measure: self.measure,
            about: &About { name: self.name.to_owned(), tokenizer },
        };
        act(&Fit {
            job: &job,
            recipe: self.recipe,
            budget: self.budget,
            reserved: self.reserved,
            formats: self.formats,
            texts: &self.calibration.sequences,
            effort: None,
            recoder: Some(&gptq),
            max_memory: self.max_memory,
            journal: &self.journal(),
        })
    }
}

/// Whether the inputs' products of all matrices may be held at once, as GPTQ wants them.
fn holds_hessians(spec: &Spec) -> bool {
    let matrices = spec.weights().into_iter().filter(|weight| weight.kind == Kind::Linear);
    matrices.map(|weight| 4 * (weight.cols as u64).pow(2)).sum::<u64>() <= MOST_HESSIANS
}
