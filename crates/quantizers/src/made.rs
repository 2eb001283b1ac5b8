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
        let own = format!("{}{matrix}", words(job.quantizer.name()));
        let method = view(job).into_iter().chain([own]).collect::<Vec<_>>().join(", then ");
        Self { method, data: datasets.filter(|names| !names.is_empty()) }
    }

    /// Layer by layer, with what the layers are fed.
    pub(crate) fn calibrated(
        job: &Job<'_>,
        transforms: &[Box<dyn Transform>],
        data: &CalibrationData,
    ) -> Self {
        let names = transforms.iter().map(|transform| transform.name());
        let own = words(job.quantizer.name()).to_owned();
        let steps: Vec<_> = view(job).into_iter().chain(names).chain([own]).collect();
        let (name, samples, tokens) = (&data.name, data.samples, data.tokens);
        let seed = data.seed;
        let data = (tokens > 0)
            .then(|| format!("{name}: {samples} samples, {tokens} tokens, seed {seed}"));
        Self { method: steps.join(", then "), data }
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

/// The view of the weights, where it is one: layers that are left, a rotation.
fn view(job: &Job<'_>) -> Option<String> {
    Some(job.weights.name()).filter(|name| !name.is_empty())
}

fn words(quantizer: &'static str) -> &'static str {
    match quantizer {
        "rtn" => "round to nearest",
        "search" => "round to nearest, scales searched for the least error",
        "gptq" => "GPTQ",
        "gptq act-order" => "GPTQ (act-order)",
        other => other,
    }
}
