use std::{path::Path, time::Instant};

use lathe_base::{Buf, Bytes, Progress, Seconds};
use lathe_files::{
    Activations, Card, Checkpoint, FolderPlan, Imatrix, Writer,
    gguf::{Metadata, Value as GgufValue},
    gguf_bytes, weights_bytes, write_folder, write_gguf,
};
use lathe_formats::{Blocks, Rows};
use lathe_models::{Role, gguf};

use serde_json::{Map, Value};

use crate::{
    Coded, Done, Error, Needs, Plan, Planned, Quantizer, Rtn, Search, Stats, Summary, Target,
    Weights,
    fingerprint::fingerprint,
    made::Made,
    measure::{Deviation, deviation},
    mix_by_name,
    recipe::is_dense,
    source::Numbers,
};

/// A plan and everything needed to carry it out.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    pub checkpoint: &'a Checkpoint,
    /// The checkpoint's own weights, or a view of them.
    pub weights: &'a dyn Weights,
    pub plan: &'a Plan,
    /// The file (GGUF) or folder (safetensors) to make.
    pub out: &'a Path,
    /// Whether an older model of that name may be replaced.
    pub replace: bool,
    pub quantizer: &'a dyn Quantizer,
    /// How much each input column of the matrices matters, by the names that llama.cpp gives them.
    pub imatrix: Option<&'a Imatrix>,
    pub threads: usize,
    /// Whether to compare every coded tensor with its source: the errors in the summary.
    pub measure: bool,
    /// For GGUF made of a Hugging Face folder: the name of the model, and its tokenizer's keys.
    pub about: &'a About,
}

/// What a GGUF says of a model besides its architecture.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// `general.name`.
    pub name: String,
    /// The `tokenizer.*` keys. Unused where the source is a GGUF: its own are carried over.
    pub tokenizer: Metadata,
}

/// Carries out `job` tensor by tensor, in memory of the largest coded tensor and one expanded row
/// per thread; the source's pages are given back as it is gone through.
///
/// The result is written beside its name and takes it only when it is complete. Stopped at any
/// point, be it by `progress`, a full disk or a kill, the same call goes on where it stopped; the
/// bytes are the same however often that happens and whatever the number of threads.
///
/// **Errors**: numbers that the format cannot hold, with their tensor and place; files that cannot
/// be read or written.
pub fn quantize(job: &Job<'_>, progress: &dyn Progress) -> Result<Summary, Error> {
    let start = Instant::now();
    if job.plan.activations == Activations::Fp8Static {
        return Err(Error::Unsupported {
            what: "fp8-static activations without calibration".to_owned(),
            instead: "calibrate, or take fp8 activations, whose scales are made on the spot"
                .to_owned(),
        });
    }
    for note in &job.plan.notes {
        progress.note(note);
    }
    let mut writer = job.writer(&fingerprint(job), Made::of(job))?;
    let resumed = writer.done();
    if resumed > 0 {
        progress.note(&format!("{resumed} tensors are there from an interrupted run"));
    }
    let total = job.plan.bytes().0;
    let mut at = 0;
    let mut tensors = Vec::with_capacity(job.plan.tensors.len());
    let mut notes = job.plan.notes.clone();
    for (i, planned) in job.plan.tensors.iter().enumerate() {
        progress.check()?;
        progress.at("bytes", at, total);
        at += planned.bytes().0;
        tensors.push(if i < resumed {
            planned.done(None)
        } else {
            job.make(planned, writer.as_mut(), &mut notes)?
        });
    }
    writer.finish()?;
    progress.at("bytes", total, total);
    Ok(Summary { notes, ..job.summary(tensors, resumed, start.elapsed().into()) })
}

impl Job<'_> {
    pub(crate) fn writer(&self, fingerprint: &str, made: Made) -> Result<Box<dyn Writer>, Error> {
        let card = made.card(self);
        let (path, replace) = (self.out, self.replace);
        let target = lathe_files::Target { path, replace, fingerprint };
        let plan: Vec<_> = self.plan.tensors.iter().map(Planned::for_file).collect();
        Ok(match self.plan.target {
            Target::Gguf => write_gguf(target, &self.metadata(card.as_ref()), &plan)?,
            Target::SafeTensors => {
                let checkpoint = self.checkpoint;
                let (config, sides) = (&self.config(), &checkpoint.folder);
                let folder = FolderPlan::new(config, sides, &plan);
                let card = card.map(|card| card.markdown());
                write_folder(target, FolderPlan { card: card.as_deref(), ..self.laid_out(folder) })?
            }
        })
    }

    /// A folder's plan with what the job's plan says of the layout.
    fn laid_out<'b>(&self, folder: FolderPlan<'b>) -> FolderPlan<'b> {
        let Plan { layout, activations, .. } = *self.plan;
        FolderPlan { layout, activations, ..folder }
    }

    /// The source's configuration, with what a view of the weights changes.
    fn config(&self) -> Map<String, Value> {
        let mut config = self.checkpoint.config.clone();
        crate::layers::adapt(&mut config, &self.weights.layers());
        // A view whose head is not its embedding.
        if !self.weights.spec().tied_head && config.contains_key("tie_word_embeddings") {
            config.insert("tie_word_embeddings".to_owned(), false.into());
        }
        config
    }

    /// The length of the weights' files, to the byte.
    pub(crate) fn length(&self) -> Result<Bytes, Error> {
        let plan: Vec<_> = self.plan.tensors.iter().map(Planned::for_file).collect();
        Ok(match self.plan.target {
            Target::Gguf => {
                let card = Made::of(self).card(self);
                gguf_bytes(self.out, &self.metadata(card.as_ref()), &plan)?
            }
            Target::SafeTensors => {
                let (config, sides) = (&self.config(), &self.checkpoint.folder);
                let folder = FolderPlan::new(config, sides, &plan);
                weights_bytes(self.out, &self.laid_out(folder))?
            }
        })
    }

    /// How far `coded` is from the numbers that it was made of, where that is asked for.
    pub(crate) fn deviation(
        &self,
        planned: &Planned,
        coded: &Blocks,
    ) -> Result<Option<Deviation>, Error> {
        if !self.measure {
            return Ok(None);
        }
        let numbers = Numbers::open(self.weights, self.checkpoint, planned)?;
        Ok(Some(deviation(&numbers, coded, self.threads)))
    }

    /// Codes one tensor and writes it.
    pub(crate) fn make(
        &self,
        planned: &Planned,
        writer: &mut dyn Writer,
        notes: &mut Vec<String>,
    ) -> Result<Done, Error> {
        let numbers = Numbers::open(self.weights, self.checkpoint, planned)?;
        let same = numbers.in_order(planned.format);
        let copied = same.is_some();
        let blocks = match same {
            // Dense numbers are coded anew, to the same bytes, because that finds NaN.
            Some(blocks) if !is_dense(planned.format) => blocks,
            _ => {
                let stats = planned.roles.iter().map(|role| self.importance(planned, *role));
                let stats = stats.collect::<Result<Vec<_>, Error>>()?;
                let stats: Vec<_> = stats.iter().map(Option::as_ref).collect();
                let coded = self.code(planned, &numbers, &stats)?;
                let named = |note| format!("`{}`: {note}", planned.name);
                notes.extend(coded.notes.into_iter().map(named));
                coded.blocks
            }
        };
        writer.add(&planned.name, &planned.shape, &blocks)?;
        let measured = self.measure && !copied;
        let loss = measured.then(|| deviation(&numbers, &blocks, self.threads));
        numbers.release();
        Ok(Done { copied, ..planned.done(loss) })
    }

    /// Chooses the codes of a tensor, with what is known of the inputs of each of its weights.
    pub(crate) fn code(
        &self,
        planned: &Planned,
        numbers: &Numbers<'_>,
        stats: &[Option<&Stats>],
    ) -> Result<Coded, Error> {
        // Experts have inputs of their own; other weights in one tensor share theirs.
        if planned.experts() < 2 || numbers.parts() != stats.len() {
            let stats = stats.iter().copied().find_map(|stats| stats);
            return self.code_rows(planned, numbers, stats);
        }
        let (mut data, mut notes) = (Vec::with_capacity(planned.bytes().0 as usize), Vec::new());
        for (nth, stats) in stats.iter().enumerate() {
            let coded = self.code_rows(planned, &numbers.part(nth), *stats)?;
            data.extend_from_slice(&coded.blocks.data);
            notes.extend(coded.notes.into_iter().map(|note| format!("expert {nth}: {note}")));
        }
        let (rows, cols) = (planned.rows, planned.cols);
        let blocks = Blocks::new(planned.format, rows, cols, data.into(), Buf::new())?;
        Ok(Coded { blocks, notes })
    }

    fn code_rows(
        &self,
        planned: &Planned,
        numbers: &dyn Rows,
        stats: Option<&Stats>,
    ) -> Result<Coded, Error> {
        let known = stats.map_or(Needs::Nothing, Stats::gives);
        let quantizer: &dyn Quantizer = match planned.kind {
            _ if is_dense(planned.format) => &Rtn,
            // What cannot do without statistics has them for the matrices inside the layers only.
            _ if self.quantizer.needs() > known => &Search,
            _ => self.quantizer,
        };
        let coded = quantizer.quantize(numbers, stats, planned.format, self.threads);
        coded.map_err(|error| error.of_tensor(&planned.name))
    }

    /// What the importance matrix says of a tensor.
    pub(crate) fn importance(&self, planned: &Planned, role: Role) -> Result<Option<Stats>, Error> {
        let Some(imatrix) = self.imatrix.filter(|_| planned.kind.may_be_coded()) else {
            return Ok(None);
        };
        let model = self.weights.model();
        let name = gguf::name(model.arch.gguf(), &model.spec, role).name;
        let Some(squares) = imatrix.entries.get(&name) else { return Ok(None) };
        let (mut importance, cols) = (squares.mean(), planned.cols);
        let (expert, experts) = self.expert(role);
        if importance.len() != experts * cols {
            return Err(Error::Imatrix {
                tensor: planned.name.clone(),
                expected: experts * cols,
                found: importance.len(),
            });
        }
        importance.drain(..expert * cols);
        importance.truncate(cols);
        let count = squares.counts.get(expert).or(squares.counts.first()).copied().unwrap_or(0);
        Ok(Some(Stats { count, importance, ..Stats::default() }))
    }

    /// Which of how many matrices a weight is in llama.cpp's tensor.
    fn expert(&self, role: Role) -> (usize, usize) {
        let Role::Layer(layer, part) = role else { return (0, 1) };
        let experts = self.weights.spec().layers.get(layer).and_then(|l| l.mlp.experts());
        match (part.expert(), experts) {
            (Some(expert), Some(experts)) => (expert, experts.count),
            _ => (0, 1),
        }
    }

    /// The GGUF's metadata: the source's own where it is a GGUF, else made of the model.
    fn metadata(&self, card: Option<&Card>) -> Metadata {
        let mut all = match &self.checkpoint.gguf {
            Some(own) => {
                let mut kept = Metadata::new();
                // How the source was stored is not how the result is.
                let kept_keys = own.iter().filter(|(key, _)| {
                    !key.starts_with("split.") && !key.starts_with("quantize.imatrix.")
                });
                kept_keys.for_each(|(key, value)| kept.set(key, value.clone()));
                kept
            }
            None => {
                let mut made = gguf::metadata(self.weights.model(), &self.about.name);
                self.about.tokenizer.iter().for_each(|(k, v)| made.set(k, v.clone()));
                made
            }
        };
        for (key, value) in card.map(Card::gguf).unwrap_or_default().iter() {
            // What the source says of itself comes first, but for who made this file.
            if all.get(key).is_none() || key == "general.quantized_by" {
                all.set(key, value.clone());
            }
        }
        // A view may have fewer layers.
        let blocks = format!("{}.block_count", self.weights.model().arch.gguf().arch);
        let layers = self.weights.spec().layers.len() as u32;
        let stored = self.checkpoint.config.get("num_hidden_layers").and_then(Value::as_u64);
        if stored.is_some_and(|stored| stored != u64::from(layers)) {
            all.set(&blocks, GgufValue::U32(layers));
        }
        if let Some(file_type) = file_type(self.plan) {
            all.set("general.file_type", GgufValue::U32(file_type));
        }
        all.set("general.quantization_version", GgufValue::U32(QUANTIZATION_VERSION));
        all
    }

    pub(crate) fn summary(&self, tensors: Vec<Done>, resumed: usize, took: Seconds) -> Summary {
        Summary {
            quantizer: self.quantizer.name(),
            format: self.plan.format.name(),
            target: self.plan.target,
            calibration: None,
            bytes_in: self.checkpoint.stored_bytes(),
            bytes_out: self.plan.bytes(),
            bits_per_weight: self.plan.bits_per_weight(),
            took,
            resumed,
            notes: self.plan.notes.clone(),
            tensors,
        }
    }
}

impl Planned {
    /// How many experts' weights are in it.
    pub(crate) fn experts(&self) -> usize {
        let is_expert =
            |role: &&Role| matches!(role, Role::Layer(_, part) if part.expert().is_some());
        self.roles.iter().filter(is_expert).count()
    }

    pub(crate) fn for_file(&self) -> lathe_files::Planned {
        lathe_files::Planned {
            name: self.name.clone(),
            shape: self.shape.clone(),
            format: self.format,
        }
    }

    pub(crate) fn done(&self, loss: Option<crate::measure::Deviation>) -> Done {
        Done {
            name: self.name.clone(),
            shape: self.shape.clone(),
            format: self.format.name(),
            bytes: self.bytes(),
            copied: false,
            mean_square_error: loss.map(|loss| loss.error),
            mean_square: loss.map(|loss| loss.power),
            zeros: loss.map(|loss| loss.zeros),
        }
    }
}

/// GGML_QNT_VERSION: the version of the block layouts.
const QUANTIZATION_VERSION: u32 = 2;

/// llama.cpp's number for "mostly this format" (`enum llama_ftype`).
fn file_type(plan: &Plan) -> Option<u32> {
    match plan.format.name() {
        "f32" => Some(0),
        "f16" => Some(1),
        "bf16" => Some(32),
        name => Some(plan.mix.or_else(|| mix_by_name(name))?.file_type),
    }
}
