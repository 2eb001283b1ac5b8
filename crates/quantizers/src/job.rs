use std::{path::Path, time::Instant};

use lathe_base::{Progress, Seconds};
use lathe_files::{
    Checkpoint, FolderPlan, Writer,
    gguf::{Metadata, Value},
    write_folder, write_gguf,
};
use lathe_formats::Blocks;
use lathe_models::{Kind, Model};

use crate::{
    Done, Error, Plan, Planned, Quantizer, Rtn, Summary, Target, fingerprint::fingerprint,
    measure::deviation, mix_by_name, recipe::is_dense, source::Numbers,
};

/// A plan and everything needed to carry it out.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    pub checkpoint: &'a Checkpoint,
    pub model: &'a Model,
    pub plan: &'a Plan,
    /// The file (GGUF) or folder (safetensors) to make.
    pub out: &'a Path,
    /// Whether an older model of that name may be replaced.
    pub replace: bool,
    pub quantizer: &'a dyn Quantizer,
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
    for note in &job.plan.notes {
        progress.note(note);
    }
    let mut writer = job.writer()?;
    let resumed = writer.done();
    if resumed > 0 {
        progress.note(&format!("{resumed} tensors are there from an interrupted run"));
    }
    let total = job.plan.bytes().0;
    let mut at = 0;
    let mut tensors = Vec::with_capacity(job.plan.tensors.len());
    for (i, planned) in job.plan.tensors.iter().enumerate() {
        progress.check()?;
        progress.at("bytes", at, total);
        at += planned.bytes().0;
        tensors.push(if i < resumed {
            planned.done(None)
        } else {
            job.make(planned, writer.as_mut())?
        });
    }
    writer.finish()?;
    progress.at("bytes", total, total);
    Ok(job.summary(tensors, resumed, start.elapsed().into()))
}

impl Job<'_> {
    fn writer(&self) -> Result<Box<dyn Writer>, Error> {
        let fingerprint = fingerprint(self);
        let target = lathe_files::Target {
            path: self.out,
            replace: self.replace,
            fingerprint: &fingerprint,
        };
        let plan: Vec<_> = self.plan.tensors.iter().map(Planned::for_file).collect();
        Ok(match self.plan.target {
            Target::Gguf => write_gguf(target, &self.metadata(), &plan)?,
            Target::SafeTensors => {
                let checkpoint = self.checkpoint;
                let (config, sides) = (&checkpoint.config, &checkpoint.folder);
                let shard = FolderPlan::SHARD;
                write_folder(target, FolderPlan { config, sides, tensors: &plan, shard })?
            }
        })
    }

    /// Codes one tensor and writes it.
    fn make(&self, planned: &Planned, writer: &mut dyn Writer) -> Result<Done, Error> {
        let shape = (planned.rows, planned.cols);
        let numbers = Numbers::open(self.model, self.checkpoint, &planned.input, shape)?;
        let same = numbers.in_order(planned.format);
        let blocks = match same {
            // Dense numbers are coded anew, to the same bytes, because that finds NaN.
            Some(blocks) if !is_dense(planned.format) => blocks.clone(),
            _ => self.code(planned, &numbers)?,
        };
        writer.add(&planned.name, &planned.shape, &blocks)?;
        let measured = self.measure && same.is_none();
        let loss = measured.then(|| deviation(&numbers, &blocks, self.threads));
        numbers.release();
        Ok(Done { copied: same.is_some(), ..planned.done(loss) })
    }

    fn code(&self, planned: &Planned, numbers: &Numbers) -> Result<Blocks, Error> {
        // Quantizers that weigh columns by what a layer is fed know only the layers' own matrices.
        let linear = planned.kind == Kind::Linear;
        let quantizer = if linear { self.quantizer } else { &Rtn };
        let coded = quantizer.quantize(numbers, None, planned.format, self.threads);
        Ok(coded.map_err(|error| error.of_tensor(&planned.name))?.blocks)
    }

    /// The GGUF's metadata: the source's own where it is a GGUF, else made of the model.
    fn metadata(&self) -> Metadata {
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
                let mut made = lathe_models::gguf::metadata(self.model, &self.about.name);
                self.about.tokenizer.iter().for_each(|(k, v)| made.set(k, v.clone()));
                made
            }
        };
        if let Some(file_type) = file_type(self.plan) {
            all.set("general.file_type", Value::U32(file_type));
        }
        all.set("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
        all
    }

    fn summary(&self, tensors: Vec<Done>, resumed: usize, took: Seconds) -> Summary {
        Summary {
            quantizer: self.quantizer.name(),
            format: self.plan.format.name(),
            target: self.plan.target,
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
    pub(crate) fn for_file(&self) -> lathe_files::Planned {
        lathe_files::Planned {
            name: self.name.clone(),
            shape: self.shape.clone(),
            format: self.format,
        }
    }

    fn done(&self, loss: Option<crate::measure::Deviation>) -> Done {
        Done {
            name: self.name.clone(),
            shape: self.shape.clone(),
            format: self.format.name(),
            bytes: self.bytes(),
            copied: false,
            mean_square_error: loss.map(|loss| loss.error),
            mean_square: loss.map(|loss| loss.power),
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
