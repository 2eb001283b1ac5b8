use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::Context;
use lathe_api::{Engine, Event, Flow, Request, Sampling};
use lathe_base::Progress;
use lathe_eval::{
    ChoicesRaw, CompareOptions, DataRaw, Encoder, QualityRaw, Subject, compare, score_choices,
};
use lathe_files::Checkpoint;
use lathe_models::{Kind, Model, Spec};
use lathe_optimize::{
    Candidate, Coding, Cost, EngineOrder, Made, ModelFacts, Settings, Sizes, Workshop, sha256,
    size_of,
};
use lathe_quantizers::{Plan, Stored, Target};
use lathe_tokens::{Template, Tokenizer};

use super::{
    data::{Data, Source},
    facts::model_hashes,
};
use crate::{commands::quantize::goal, how::How, making::Making, open};

/// How long the text is that every candidate writes for the eye.
const SAMPLE_TOKENS: usize = 60;

/// The longest sequence that a model was made for.
pub(crate) fn model_context(source: &Source) -> anyhow::Result<usize> {
    let checkpoint = checkpoint(source)?;
    Ok(Model::read(&checkpoint)?.spec.context)
}

fn checkpoint(source: &Source) -> anyhow::Result<Checkpoint> {
    if is_demo(source) { open::demo() } else { Ok(Checkpoint::open(&source.model)?) }
}

fn is_demo(source: &Source) -> bool {
    source.model == Path::new(open::DEMO)
}

/// What optimize needs of a model, its texts and engines.
pub(crate) struct Shop {
    source: Source,
    settings: Settings,
    checkpoint: Checkpoint,
    model: Model,
    tokenizer: Arc<Tokenizer>,
    name: String,
    pub(crate) data: Data,
}

impl Shop {
    /// Opens the model and the texts of a run.
    pub(crate) fn open(
        source: &serde_json::Value,
        settings: &Settings,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        let source: Source = serde_json::from_value(source.clone()).context("the run's source")?;
        progress.at("opening the model", 0, 1);
        let checkpoint = checkpoint(&source)?;
        let model = Model::read(&checkpoint)?;
        let tokenizer = open::tokenizer(&checkpoint)?;
        let template = Template::from_checkpoint(&checkpoint, &tokenizer).ok();
        let data = Data::read(&source, is_demo(&source), &tokenizer, template.as_ref(), settings)?;
        let settings = settings.clone();
        let name = if is_demo(&source) {
            lathe_demo::NAME.to_owned()
        } else {
            source.model.file_stem().unwrap_or_default().to_string_lossy().into_owned()
        };
        Ok(Self { source, settings, checkpoint, model, tokenizer, name, data })
    }

    pub(crate) fn spec(&self) -> &Spec {
        &self.model.spec
    }

    /// What is recorded of the model; reads its files once more for their hashes.
    pub(crate) fn model_facts(
        &self,
        name: &str,
        progress: &dyn Progress,
    ) -> anyhow::Result<ModelFacts> {
        let spec = self.spec();
        let demo = is_demo(&self.source);
        let name = if demo { lathe_demo::NAME } else { name };
        let layers = format!("{} layers, width {}", spec.layers.len(), spec.width);
        Ok(ModelFacts {
            name: name.to_owned(),
            arch: spec.arch.to_owned(),
            parameters: spec.parameters(),
            context: spec.context,
            stored: self.checkpoint.stored_bytes(),
            stored_format: self.stored_format(),
            hashes: self.hashes(progress)?,
            facts: vec![
                ("Shape".to_owned(), layers),
                ("Vocabulary".to_owned(), format!("{} tokens", spec.vocab)),
                ("Container".to_owned(), self.checkpoint.container.to_string()),
            ],
        })
    }

    /// Hashes of the model's files; the built-in model's are in memory.
    fn hashes(&self, progress: &dyn Progress) -> anyhow::Result<BTreeMap<String, String>> {
        if is_demo(&self.source) {
            let files = lathe_demo::files().iter();
            return Ok(files.map(|(name, bytes)| ((*name).to_owned(), sha256(bytes))).collect());
        }
        model_hashes(&self.checkpoint, progress)
    }

    /// The format that most bytes of the model's matrices are stored in.
    fn stored_format(&self) -> String {
        let mut by_format: Vec<(String, usize)> = Vec::new();
        for located in self.model.weights.iter().filter(|w| w.weight.kind != Kind::Vector) {
            let format = self.checkpoint.format(&located.tensor.name).unwrap_or_default();
            match by_format.iter_mut().find(|(name, _)| *name == format) {
                Some((_, count)) => *count += located.weight.len(),
                None => by_format.push((format, located.weight.len())),
            }
        }
        let most = by_format.into_iter().max_by_key(|(_, count)| *count);
        most.map_or_else(|| "unknown".to_owned(), |(name, _)| name)
    }

    /// Whether a format or mix can make the model smaller: nothing is gained by writing a model in
    /// the format that it has, or one with more bits.
    pub(crate) fn is_worth_making(&self, format: &str) -> bool {
        let stored = self.stored_format();
        let bits = |name: &str| {
            let format = lathe_formats::by_name(name).ok()?;
            Some(format.row_bytes(4096) as f64 * 8.0 / 4096.0)
        };
        let wanted = goal(format).ok().and_then(|goal| Some(goal.recipe().ok()?.to.name()));
        match (bits(&stored), wanted.and_then(bits)) {
            (Some(stored), Some(candidate)) => candidate < stored,
            _ => true,
        }
    }

    /// What the base takes as it is.
    pub(crate) fn base_sizes(&self) -> Sizes {
        let stored = self.checkpoint.stored_bytes();
        let spec = self.spec();
        let bits = stored.0 as f64 * 8.0 / spec.parameters().max(1) as f64;
        let table = if spec.tied_head { 0 } else { (spec.vocab - 1) * spec.width };
        let unread = (table as f64 * bits / 8.0) as u64;
        let read = lathe_base::Bytes(stored.0.saturating_sub(unread));
        Sizes { weights: stored, read, bits_per_weight: bits, make: Cost::default() }
    }

    /// What a candidate will take, from the plan by which it is made.
    pub(crate) fn sizes(&self, candidate: &Candidate) -> Result<Sizes, String> {
        let Some(coding) = &candidate.weights else { return Ok(self.base_sizes()) };
        let plan = self.plan(coding)?;
        let unread = |tensor: &&lathe_quantizers::Planned| {
            tensor.kind == Kind::Embedding && !self.spec().tied_head
        };
        let table: u64 = plan.tensors.iter().filter(unread).map(|t| t.bytes().0).sum();
        let read = lathe_base::Bytes(plan.bytes().0 - table);
        let bits_per_weight = plan.bits_per_weight();
        Ok(Sizes { weights: plan.bytes(), read, bits_per_weight, make: Cost::default() })
    }

    fn plan(&self, coding: &Coding) -> Result<Plan, String> {
        let recipe = goal(&coding.format)?.recipe().map_err(|error| format!("{error:#}"))?;
        Plan::new(&self.model, &self.checkpoint, &recipe).map_err(|error| error.to_string())
    }

    /// What the reader of the report should know of the choice of texts.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut list = Vec::new();
        if self.source.data.is_none() && !is_demo(&self.source) {
            list.push(
                "quality was measured on the built-in short stories in simple English; give texts like yours by --data"
                    .to_owned(),
            );
        }
        if self.data.facts.documents < lathe_stats::SMALLEST_BOOTSTRAP {
            list.push(format!(
                "the text has fewer than {} documents: intervals of quality are over pieces of them and somewhat too short",
                lathe_stats::SMALLEST_BOOTSTRAP
            ));
        }
        list
    }
}

impl Workshop for Shop {
    fn make(
        &self,
        candidate: &Candidate,
        out: PathBuf,
        progress: &dyn Progress,
    ) -> Result<Made, String> {
        let start = Instant::now();
        let coding = candidate.weights.as_ref().ok_or("the base is there already")?;
        let plan = self.plan(coding)?;
        let path = match plan.target {
            Target::Gguf => out.with_extension("gguf"),
            Target::SafeTensors => out,
        };
        let making = Making {
            checkpoint: &self.checkpoint,
            weights: &Stored { model: &self.model, checkpoint: &self.checkpoint },
            plan: &plan,
            name: &self.name,
            out: &path,
            how: &How::nearest(),
            threads: self.settings.threads,
            // What lies there is a candidate whose record was lost: an interrupted run's.
            replace: true,
            measure: false,
        };
        let summary = making.carry_out(progress).map_err(|error| format!("{error:#}"))?;
        Ok(Made {
            size: size_of(&path).map_err(|error| error.to_string())?,
            bits_per_weight: summary.bits_per_weight,
            seconds: start.elapsed().into(),
            notes: summary.notes,
            path,
        })
    }

    fn open(&self, order: &EngineOrder) -> Result<Box<dyn Engine>, String> {
        open::engine(order).map_err(|error| format!("{error:#}"))
    }

    fn compare(
        &self,
        subjects: &[Subject<'_>],
        progress: &dyn Progress,
    ) -> Result<QualityRaw, lathe_eval::Error> {
        let data = &self.data;
        let Some((reference, others)) = subjects.split_first() else {
            return Err(lathe_eval::Error::Mismatch { why: "there is nothing to compare".into() });
        };
        let options =
            CompareOptions { threads: self.settings.threads, ..CompareOptions::default() };
        let pass = compare(reference, others, &data.texts, &data.plan, &options, progress)?;
        let encode = |text: &str| self.tokenizer.encode(text, false).map_err(|e| e.to_string());
        let encoder = Encoder { encode: &encode, bos: self.tokenizer.prefix().first().copied() };
        let mut choices = Vec::new();
        if let Some(set) = &data.choices {
            let mut raw = ChoicesRaw::new(set);
            for subject in subjects {
                raw.models.push(score_choices(subject, set, encoder, progress)?);
            }
            choices.push(raw);
        }
        let raw = DataRaw::new(&data.texts, &data.plan);
        Ok(QualityRaw { data: raw, passes: vec![pass], choices })
    }

    fn write(&self, engine: &dyn Engine) -> Result<String, String> {
        let prompt = &self.settings.prompt;
        let ids = self.tokenizer.encode(prompt, true).map_err(|e| e.to_string())?;
        let room = engine.info().context.saturating_sub(ids.len());
        let request = Request {
            max_tokens: SAMPLE_TOKENS.min(room),
            prompt: ids,
            sampling: Sampling::default(),
            stop_tokens: self.tokenizer.stop_tokens().to_vec(),
            stop_strings: Vec::new(),
            ignore_stop: false,
        };
        let mut text = prompt.clone();
        engine
            .generate(&request, &mut |event| {
                if let Event::Token { text: piece, .. } = event {
                    text.push_str(piece);
                }
                Flow::Continue
            })
            .map_err(|error| error.to_string())?;
        Ok(text)
    }
}
