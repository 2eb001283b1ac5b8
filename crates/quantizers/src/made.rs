use lathe_files::{Card, Layout, Origin};

use crate::{CalibrationData, Job, Target, Transform, recipe::is_dense};

/// How a job's codes are chosen, in words for its model card.
#[derive(Debug)]
pub(crate) struct Made {
    method: String,
    data: Option<String>,
}

impl Made {
    /// Without calibration, or with an importance matrix.
    pub(crate) fn of(job: &Job<'_>) -> Self {
        let datasets = job.imatrix.map(|imatrix| imatrix.datasets.join(", "));
        let matrix = if job.imatrix.is_some() { ", with an importance matrix" } else { "" };
        let method = format!("{}{matrix}", words(job.quantizer.name()));
        Self { method, data: datasets.filter(|names| !names.is_empty()) }
    }

    /// Layer by layer, with what the layers are fed.
    pub(crate) fn calibrated(
        job: &Job<'_>,
        transforms: &[Box<dyn Transform>],
        data: &CalibrationData,
    ) -> Self {
        let names = transforms.iter().map(|transform| transform.name());
        let steps: Vec<_> = names.chain([words(job.quantizer.name()).to_owned()]).collect();
        let (name, samples, tokens) = (&data.name, data.samples, data.tokens);
        let data = format!("{name}: {samples} samples, {tokens} tokens, seed {}", data.seed);
        Self { method: steps.join(", then "), data: Some(data) }
    }

    /// The card of the result; none where nothing is quantized.
    pub(crate) fn card(self, job: &Job<'_>) -> Option<Card> {
        let plan = job.plan;
        let layout = (plan.target == Target::SafeTensors).then_some(plan.layout);
        (!is_dense(plan.format)).then(|| Card {
            name: job.about.name.clone(),
            origin: Origin::of(job.checkpoint),
            method: self.method,
            format: plan.format.name().to_owned(),
            layout: layout.filter(|layout| *layout != Layout::Auto),
            data: self.data,
            bits_per_weight: plan.bits_per_weight(),
            size: plan.file_bytes(),
            quality: Vec::new(),
        })
    }
}

fn words(quantizer: &'static str) -> &'static str {
    match quantizer {
        "rtn" => "round to nearest",
        "search" => "round to nearest, scales searched for the least error",
        "gptq" => "GPTQ",
        other => other,
    }
}
