use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Instant,
};

use anyhow::Context;
use lathe_api::{Engine, Event, Flow, Request, Sampling};
use lathe_base::{Bytes, Progress, Seconds, Silent};
use lathe_eval::{
    ChoicesRaw, CompareOptions, DataRaw, Encoder, QualityRaw, Subject, compare, score_choices,
};
use lathe_files::{Activations, Checkpoint};
use lathe_kernels::{Matrix, Pool, matmul};
use lathe_models::{Kind, Located, Model, Spec};
use lathe_optimize::{
    Candidate, Coding, Cost, EngineChoice, EngineOrder, Made, ModelFacts, Settings, Sizes, Start,
    Workshop, sha256, size_of,
};
use lathe_quantizers::{
    Calibration, Method, Needs, Plan, Prune, Recipe, Stored, Summary, Target, Weights, mix::Budget,
};
use lathe_tokens::{Template, Tokenizer};

use super::{
    data::{Data, Source},
    facts::model_hashes,
};
use crate::{
    change::{Change, Dropped},
    commands::{
        calibration::CalibrationArgs,
        quantize::{goal, pruning_notes},
    },
    fitting::Fitting,
    how::How,
    making::Making,
    open,
    peers::{Peer, Places},
};

/// How long the text is that every candidate writes for the eye.
const SAMPLE_TOKENS: usize = 60;

/// What is not chosen for a budget, such as what is too small to matter, is made as in this mix.
const BUDGETS_REST: &str = "q8_0";

/// Rows whose coding is timed.
const SAMPLE_ROWS: usize = 64;

/// Operations a second of a product in f32, measured on the spot.
fn arithmetic(threads: usize) -> f64 {
    const SIZE: usize = 512;
    let pool = Pool::new(threads);
    let ones = vec![1.0f32; SIZE * SIZE];
    let encoded = lathe_formats::by_name("f32").and_then(|f| f.encode(SIZE, SIZE, &ones, threads));
    let Some(matrix) = encoded.ok().and_then(|blocks| Matrix::new(blocks).ok()) else {
        return 1e9;
    };
    let mut out = vec![0.0; SIZE * SIZE];
    // The first product wakes the threads.
    matmul(&pool, &ones, SIZE, &matrix, &mut out);
    let start = Instant::now();
    matmul(&pool, &ones, SIZE, &matrix, &mut out);
    2.0 * (SIZE * SIZE * SIZE) as f64 / start.elapsed().as_secs_f64().max(1e-6)
}

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
    pub(super) settings: Settings,
    pub(super) checkpoint: Checkpoint,
    pub(super) model: Model,
    pub(super) tokenizer: Arc<Tokenizer>,
    name: String,
    calibration: OnceLock<Calibration>,
    /// Engines beside Lathe's own.
    pub(crate) peers: Vec<Peer>,
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
        let places = Places::of(&settings.engines);
        let find = |choice: &EngineChoice| Peer::find_for("--engines", &choice.name, &places);
        let peers = settings.engines.iter().map(find).collect::<anyhow::Result<_>>()?;
        let name = if is_demo(&source) {
            lathe_demo::NAME.to_owned()
        } else {
            source.model.file_stem().unwrap_or_default().to_string_lossy().into_owned()
        };
        let calibration = OnceLock::new();
        Ok(Self { source, settings, checkpoint, model, tokenizer, name, calibration, peers, data })
    }

    pub(crate) fn spec(&self) -> &Spec {
        &self.model.spec
    }

    /// Tokens that prompts may be drawn from.
    pub(crate) fn vocab(&self) -> usize {
        self.tokenizer.vocab_size().min(self.spec().vocab)
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
        for located in self.model.weights.iter().filter(|w| w.weight.kind.may_be_coded()) {
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
    /// the format that it has, or one with more bits. What changes more than the format is made as
    /// it is asked for.
    pub(crate) fn is_worth_making(&self, coding: &Coding) -> bool {
        let bits = |name: &str| {
            let format = lathe_formats::by_name(name).ok()?;
            Some(format.row_bytes(4096) as f64 * 8.0 / 4096.0)
        };
        let changed =
            coding.prune.is_some() || coding.drop_layers.is_some() || coding.rotate.is_some();
        let wanted = goal(&coding.format).ok().and_then(|goal| goal.recipe().ok());
        let wanted = coding.budget().or_else(|| bits(wanted?.to.name()));
        match (bits(&self.stored_format()), wanted) {
            (Some(stored), Some(candidate)) => candidate < stored || changed,
            _ => true,
        }
    }

    /// What the base takes as it is.
    pub(crate) fn base_sizes(&self) -> Sizes {
        let stored = self.checkpoint.stored_bytes();
        let spec = self.spec();
        let bits = stored.0 as f64 * 8.0 / spec.parameters().max(1) as f64;
        // Rows of other tokens, and experts that a token does not go through.
        let idle = spec.parameters() - spec.active_parameters();
        let unread = (idle as f64 * bits / 8.0) as u64;
        let read = Bytes(stored.0.saturating_sub(unread));
        Sizes { weights: stored, read, bits_per_weight: bits, make: Cost::default() }
    }

    /// What a candidate will take, from the plan by which it is made.
    pub(crate) fn sizes(&self, candidate: &Candidate) -> Result<Sizes, String> {
        let Some(coding) = &candidate.weights else { return Ok(self.base_sizes()) };
        self.sizes_of(coding).map_err(|error| format!("{error:#}"))
    }

    /// The plan by which a candidate is made.
    pub(super) fn planned<T>(
        &self,
        coding: &Coding,
        then: impl FnOnce(&dyn Weights, (&Plan, &Recipe)) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        // Which layers go does not matter for what is left, nor does a rotation.
        let all = self.spec().layers.len();
        let dropped = coding.drop_layers.map(|count| Dropped::any(count, all)).transpose()?;
        let change = Change { dropped, rotate: None };
        change.view(&self.stored(), &self.checkpoint, self.settings.threads, |weights, _| {
            let recipe = recipe(coding)?;
            let plan = Plan::new(weights.model(), &self.checkpoint, &recipe)?;
            then(weights, (&plan, &recipe))
        })
    }

    fn sizes_of(&self, coding: &Coding) -> anyhow::Result<Sizes> {
        self.planned(coding, |weights, (plan, recipe)| {
            let read = |tensor: &lathe_quantizers::Planned| {
                let weight = tensor.roles.first().and_then(|role| weights.model().find(*role));
                let used = weight.map_or(1.0, |found| weights.spec().use_per_token(&found.weight));
                tensor.bytes().0 as f64 * used
            };
            let read: f64 = plan.tensors.iter().map(read).sum();
            let planned = plan.bytes();
            let Some(bits) = coding.budget() else {
                return Ok(Sizes {
                    weights: planned,
                    read: Bytes(read as u64),
                    bits_per_weight: plan.bits_per_weight(),
                    make: self.cost(coding, weights, plan)?,
                });
            };
            let (out, calibration) = (Path::new("mixed"), self.calibration(&Silent)?);
            let fitting = self.fitting((bits, calibration), weights, (plan, recipe), out);
            let expected = fitting.expected(arithmetic(self.settings.threads))?;
            let share = read / planned.0.max(1) as f64;
            Ok(Sizes {
                weights: expected.bytes,
                read: Bytes((expected.bytes.0 as f64 * share) as u64),
                bits_per_weight: bits,
                make: Cost { time: expected.time, memory: expected.memory },
            })
        })
    }

    fn stored(&self) -> Stored<'_> {
        Stored { model: &self.model, checkpoint: &self.checkpoint }
    }

    fn fitting<'a>(
        &'a self,
        (bits, calibration): (f64, &'a Calibration),
        weights: &'a dyn Weights,
        (plan, recipe): (&'a Plan, &'a Recipe),
        out: &'a Path,
    ) -> Fitting<'a> {
        Fitting {
            checkpoint: &self.checkpoint,
            weights,
            plan,
            recipe,
            budget: Budget::Bits(bits),
            reserved: Bytes(0),
            formats: &[],
            calibration,
            name: &self.name,
            out,
            threads: self.settings.threads,
            max_memory: None,
            replace: true,
            measure: false,
        }
    }

    /// How a candidate's codes are chosen.
    fn how(&self, coding: &Coding, plan: &Plan, progress: &dyn Progress) -> anyhow::Result<How> {
        let method = Method::by_name(&coding.method)
            .with_context(|| format!("there is no method `{}`", coding.method))?;
        let mut pipeline = (method.make)(&lathe_quantizers::Settings::default())?;
        if let Some(prune) = &coding.prune {
            pipeline = pipeline.after(prune.parse::<Prune>()?);
        }
        let fixed = plan.activations == Activations::Fp8Static;
        let calibration = match pipeline.needs() {
            Needs::Nothing if !fixed => None,
            _ => Some(self.calibration(progress)?.clone()),
        };
        Ok(How { pipeline, calibration, ..How::nearest() })
    }

    /// What is calibrated with: drawn once, the same for all.
    fn calibration(&self, progress: &dyn Progress) -> anyhow::Result<&Calibration> {
        if let Some(drawn) = self.calibration.get() {
            return Ok(drawn);
        }
        let texts = self.source.calibration.clone();
        let args = CalibrationArgs { calibration: texts, samples: None, length: None, seed: 0 };
        let drawn = args.draw(&self.checkpoint, &self.model, progress)?;
        Ok(self.calibration.get_or_init(|| drawn))
    }

    /// What making a candidate takes: its formats are timed on a few rows of the model itself,
    /// calibration is counted in operations at the rate that is measured here.
    fn cost(&self, coding: &Coding, weights: &dyn Weights, plan: &Plan) -> anyhow::Result<Cost> {
        let rate = self.seconds_per_weight(plan)?;
        let time = rate * plan.parameters() as f64;
        let memory = plan.largest();
        let how = self.how(coding, plan, &Silent)?;
        if !how.by_layer() {
            return Ok(Cost { time: Seconds(time), memory });
        }
        let tokens = how.calibration.as_ref().map_or(0.0, |drawn| drawn.about.tokens as f64);
        // What makes up for errors goes through all pairs of columns for every row.
        let steps = how.pipeline.transforms.iter().map(|transform| transform.needs());
        let steps = steps.chain([how.pipeline.quantizer.needs()]);
        let solves = steps.filter(|needs| *needs == Needs::Hessian).count() as f64;
        let linears = plan.tensors.iter().filter(|tensor| tensor.kind == Kind::Linear);
        let operations: f64 = linears
            .map(|tensor| {
                let (rows, cols) = (tensor.rows as f64, tensor.cols as f64);
                // Two passes of the tokens, the products of inputs, and the codes' own errors.
                let products = tokens * cols * cols / 2.0;
                2.0 * tokens * rows * cols * 2.0 + products + solves * rows * cols * cols
            })
            .sum();
        let time = time + operations / arithmetic(self.settings.threads);
        let making = Making {
            checkpoint: &self.checkpoint,
            weights,
            plan,
            name: &self.name,
            out: Path::new(""),
            how: &how,
            threads: self.settings.threads,
            replace: false,
            measure: false,
        };
        Ok(Cost { time: Seconds(time), memory: making.peak()? })
    }

    /// Seconds that coding one weight takes, by doing it with a few rows.
    fn seconds_per_weight(&self, plan: &Plan) -> anyhow::Result<f64> {
        let fits = |located: &&Located| {
            located.weight.kind == Kind::Linear && plan.format.check(located.weight.cols).is_ok()
        };
        let Some(located) = self.model.weights.iter().find(fits) else { return Ok(0.0) };
        let rows = located.weight.rows.min(SAMPLE_ROWS);
        let sample = self.model.load(&self.checkpoint, located)?.slice_rows(0..rows)?;
        let start = Instant::now();
        sample.convert(plan.format, self.settings.threads)?;
        Ok(start.elapsed().as_secs_f64() / (rows * located.weight.cols) as f64)
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

/// What weights are made into.
fn recipe(coding: &Coding) -> anyhow::Result<Recipe> {
    let name = if coding.budget().is_some() { BUDGETS_REST } else { &coding.format };
    let recipe = goal(name).map_err(anyhow::Error::msg)?.recipe()?;
    let importance = Method::by_name(&coding.method).is_some_and(Method::weighs);
    Ok(Recipe { importance, ..recipe })
}

impl Shop {
    fn make_coding(
        &self,
        coding: &Coding,
        out: PathBuf,
        progress: &dyn Progress,
    ) -> anyhow::Result<Made> {
        let (start, threads) = (Instant::now(), self.settings.threads);
        let least = |count: usize| {
            let texts = self.calibration(progress)?.clone();
            Dropped::least(count, &self.stored(), texts, threads, progress)
        };
        let dropped = coding.drop_layers.map(least).transpose()?;
        let change = Change { dropped, rotate: coding.rotate };
        change.view(&self.stored(), &self.checkpoint, threads, |weights, notes| {
            let recipe = recipe(coding)?;
            let plan = Plan::new(weights.model(), &self.checkpoint, &recipe)?;
            let path = match plan.target {
                Target::Gguf => out.with_added_extension("gguf"),
                Target::SafeTensors => out,
            };
            let summary = match coding.budget() {
                Some(bits) => {
                    let calibration = self.calibration(progress)?;
                    let both = (&plan, &recipe);
                    let fitting = self.fitting((bits, calibration), weights, both, &path);
                    let summary = fitting.carry_out(progress)?.summary;
                    // No other budget is tried with these measurements; not there is as good.
                    let _ = fs::remove_file(fitting.journal());
                    summary
                }
                None => self.coded(coding, weights, (&plan, &path), progress)?,
            };
            let pruned = coding.prune.as_ref().map(|_| pruning_notes(&plan)).unwrap_or_default();
            Ok(Made {
                size: size_of(&path)?,
                bits_per_weight: summary.bits_per_weight,
                seconds: start.elapsed().into(),
                notes: [summary.notes, notes, pruned].concat(),
                path,
            })
        })
    }

    fn coded(
        &self,
        coding: &Coding,
        weights: &dyn Weights,
        (plan, path): (&Plan, &Path),
        progress: &dyn Progress,
    ) -> anyhow::Result<Summary> {
        let making = Making {
            checkpoint: &self.checkpoint,
            weights,
            plan,
            name: &self.name,
            out: path,
            how: &self.how(coding, plan, progress)?,
            threads: self.settings.threads,
            // What lies there is a candidate whose record was lost: an interrupted run's.
            replace: true,
            measure: false,
        };
        making.carry_out(progress)
    }
}

impl Workshop for Shop {
    fn make(
        &self,
        candidate: &Candidate,
        out: PathBuf,
        progress: &dyn Progress,
    ) -> Result<Made, String> {
        let coding = candidate.weights.as_ref().ok_or("the base is there already")?;
        self.make_coding(coding, out, progress).map_err(|error| format!("{error:#}"))
    }

    fn adapt(
        &self,
        order: &EngineOrder,
        made: &Made,
        out: PathBuf,
        progress: &dyn Progress,
    ) -> Result<Option<Made>, String> {
        self.adapted(order, made, &out, progress).map_err(|error| format!("{error:#}"))
    }

    fn start(&self, order: &EngineOrder) -> Result<Start, String> {
        self.started(order).map_err(|error| format!("{error:#}"))
    }

    fn question(&self, order: &EngineOrder, files: &Path) -> Result<serde_json::Value, String> {
        self.asked(order, files).map_err(|error| format!("{error:#}"))
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
            grammar: None,
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
