//! Sources, cases and results that the tests of the job share.

// Not every test uses all of it.
#![allow(dead_code)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use lathe_base::{Bytes, Progress};
use lathe_files::{Checkpoint, Folder, FolderPlan, Imatrix, gguf::Metadata, write_folder};
use lathe_formats::by_name;
use lathe_models::{Config, Kind, Model, Weight};
use lathe_quantizers::{
    About, Calibrated, Calibration, Error, Estimate, Gptq, Job, Measured, Plan, Quantizer, Recipe,
    Rtn, Stored, Summary, Target, Transform, measure_importance, quantize, quantize_calibrated,
};
use serde_json::{Value, json};

/// How large a Llama is to be.
pub(crate) struct Sizes {
    pub(crate) width: usize,
    pub(crate) feed_forward: usize,
    pub(crate) layers: usize,
    pub(crate) tied: bool,
}

/// A Llama written to a folder of its own.
pub(crate) struct Source {
    folder: tempfile::TempDir,
}

impl Source {
    /// Two small layers that every format fits.
    pub(crate) fn new(tied: bool) -> Self {
        Self::sized(&Sizes { width: 128, feed_forward: 256, layers: 2, tied })
    }

    pub(crate) fn sized(sizes: &Sizes) -> Self {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 100,
            "hidden_size": sizes.width, "intermediate_size": sizes.feed_forward,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64, "tie_word_embeddings": sizes.tied,
        });
        let Value::Object(config) = config else { unreachable!("it is an object") };
        let (arch, spec) = lathe_models::read_config(&Config::new(config.clone())).unwrap();
        let bf16 = by_name("bf16").unwrap();
        let planned = |w: &Weight| {
            let vector = w.kind == Kind::Vector;
            let shape = if vector { vec![w.cols] } else { vec![w.rows, w.cols] };
            lathe_files::Planned { name: arch.name(&spec, w.role).name, shape, format: bf16 }
        };
        let weights = spec.weights();
        let tensors: Vec<_> = weights.iter().map(planned).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("source");
        let target = lathe_files::Target { path: &path, replace: false, fingerprint: "" };
        let plan = FolderPlan::new(&config, &Folder::None, &tensors);
        let mut writer = write_folder(target, plan).unwrap();
        for (i, (weight, planned)) in weights.iter().zip(&tensors).enumerate() {
            let number = |j: usize| ((j * 31 + i * 7 + j * j % 1009) % 1013) as f32 * 1e-4 - 0.05;
            let numbers: Vec<f32> = (0..weight.len()).map(number).collect();
            let blocks = bf16.encode(weight.rows, weight.cols, &numbers, 1).unwrap();
            writer.add(&planned.name, &planned.shape, &blocks).unwrap();
        }
        writer.finish().unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("source")
    }
}

pub(crate) fn recipe(format: &str) -> Recipe {
    Recipe::new(by_name(format).unwrap())
}

/// An opened source and what it is to become.
pub(crate) struct Case {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) model: Model,
    pub(crate) plan: Plan,
    pub(crate) imatrix: Option<Imatrix>,
    /// Of calibrated jobs.
    pub(crate) threads: usize,
    pub(crate) max_memory: Option<Bytes>,
    pub(crate) transforms: Vec<Box<dyn Transform>>,
    about: About,
}

impl Case {
    pub(crate) fn new(source: &Path, recipe: &Recipe) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open(source)?;
        let model = Model::read(&checkpoint)?;
        let plan = Plan::new(&model, &checkpoint, recipe)?;
        let about = About { name: "Test".to_owned(), tokenizer: Metadata::new() };
        let (imatrix, max_memory, transforms) = (None, None, Vec::new());
        Ok(Self { checkpoint, model, plan, imatrix, threads: 2, max_memory, transforms, about })
    }

    pub(crate) fn run(
        &self,
        out: &Path,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<Summary, Error> {
        self.with_job(&Rtn, out, |job| quantize(&Job { threads, ..*job }, progress))
    }

    pub(crate) fn run_with(&self, quantizer: &dyn Quantizer, out: &Path) -> Result<Summary, Error> {
        self.with_job(quantizer, out, |job| quantize(job, &lathe_base::Silent))
    }

    /// By GPTQ, layer by layer.
    pub(crate) fn calibrate(
        &self,
        out: &Path,
        data: &Calibration,
        progress: &dyn Progress,
    ) -> Result<Summary, Error> {
        self.calibrate_with(&Gptq::default(), out, data, progress)
    }

    pub(crate) fn calibrate_with(
        &self,
        quantizer: &dyn Quantizer,
        out: &Path,
        data: &Calibration,
        progress: &dyn Progress,
    ) -> Result<Summary, Error> {
        self.calibrated(quantizer, out, data, |job| quantize_calibrated(job, progress))
    }

    pub(crate) fn estimate(&self, quantizer: &dyn Quantizer, data: &Calibration) -> Estimate {
        self.calibrated(quantizer, Path::new("out"), data, |job| job.estimate().unwrap())
    }

    /// The smallest cap that a job by GPTQ works with.
    pub(crate) fn least_memory(&self, data: &Calibration) -> Bytes {
        self.calibrated(&Gptq::default(), Path::new("out"), data, |job| {
            match (Calibrated { max_memory: Some(Bytes(0)), ..*job }).estimate() {
                Err(Error::MaxMemory { needed, .. }) => needed,
                other => panic!("{other:?}"),
            }
        })
    }

    pub(crate) fn importance(&self, data: &Calibration) -> Imatrix {
        let weights = &Stored { model: &self.model, checkpoint: &self.checkpoint };
        let measured = Measured { weights, calibration: data, head: false, threads: self.threads };
        measure_importance(&measured, &lathe_base::Silent).unwrap()
    }

    fn calibrated<T>(
        &self,
        quantizer: &dyn Quantizer,
        out: &Path,
        data: &Calibration,
        then: impl FnOnce(&Calibrated<'_>) -> T,
    ) -> T {
        self.with_job(quantizer, out, |job| {
            then(&Calibrated {
                job: *job,
                transforms: &self.transforms,
                calibration: data,
                sequential: true,
                max_memory: self.max_memory,
            })
        })
    }

    fn with_job<T>(
        &self,
        quantizer: &dyn Quantizer,
        out: &Path,
        then: impl FnOnce(&Job<'_>) -> T,
    ) -> T {
        then(&Job {
            checkpoint: &self.checkpoint,
            weights: &Stored { model: &self.model, checkpoint: &self.checkpoint },
            plan: &self.plan,
            out,
            replace: false,
            quantizer,
            imatrix: self.imatrix.as_ref(),
            threads: self.threads,
            measure: true,
            about: &self.about,
        })
    }
}

/// A recipe for a GGUF.
pub(crate) trait IntoGguf {
    fn into_gguf(self) -> Self;
}

impl IntoGguf for Recipe {
    fn into_gguf(self) -> Self {
        Self { target: Some(Target::Gguf), ..self }
    }
}

/// Where a case's result goes in a fresh folder.
pub(crate) fn out(folder: &tempfile::TempDir, plan: &Plan) -> PathBuf {
    folder.path().join(if plan.target == Target::Gguf { "out.gguf" } else { "out" })
}

/// All files of a result, by name.
pub(crate) fn files(out: &Path) -> Vec<(String, Vec<u8>)> {
    if out.is_file() {
        return vec![("the file".to_owned(), fs::read(out).unwrap())];
    }
    let mut all: Vec<_> = fs::read_dir(out)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()))
        .collect();
    all.sort();
    all
}
