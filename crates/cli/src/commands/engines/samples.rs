//! The built-in model in every layout and kind of format that is written.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use lathe_base::Progress;
use lathe_files::{Activations, Checkpoint, Layout};
use lathe_models::Model;
use lathe_preflight::Artifact;
use lathe_quantizers::{Calibration, Plan, Recipe, Target};

use crate::{
    commands::{quantize::goal, system::default_threads},
    how::How,
    loading,
    making::Making,
    open,
};

/// One kind of files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// As in `lathe quantize --to`.
    pub(super) to: &'static str,
    target: Target,
    layout: Layout,
    /// Where it is not the usual one.
    activations: Option<Activations>,
}

impl Kind {
    const fn folder(name: &'static str, to: &'static str, layout: Layout) -> Self {
        Self { name, to, target: Target::SafeTensors, layout, activations: None }
    }

    const fn gguf(name: &'static str) -> Self {
        Self { name, to: name, target: Target::Gguf, layout: Layout::Auto, activations: None }
    }

    /// Of this name.
    pub(super) fn by_name(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.name == name)
    }

    fn recipe(&self) -> anyhow::Result<Recipe> {
        let usual = goal(self.to).map_err(anyhow::Error::msg)?.recipe()?;
        let activations = self.activations.or(usual.activations);
        Ok(Recipe { target: Some(self.target), layout: self.layout, activations, ..usual })
    }
}

/// Folders first; each layout with what its readers tell apart: bits, zero points, groups, inputs.
#[rustfmt::skip]
pub(super) const KINDS: [Kind; 31] = [
    Kind::folder("bf16", "bf16", Layout::Auto),
    Kind::folder("gptq", "int4_g128_f16", Layout::Gptq),
    Kind::folder("gptq-asym", "int4_asym_g128_f16", Layout::Gptq),
    Kind::folder("gptq-3bit", "int3_g128_f16", Layout::Gptq),
    Kind::folder("gptq-8bit", "int8_g128_f16", Layout::Gptq),
    Kind::folder("gptq-v2", "int4_g128_f16", Layout::GptqV2),
    Kind::folder("gptq-v2-asym", "int4_asym_g128_f16", Layout::GptqV2),
    Kind::folder("awq", "int4_asym_g128_f16", Layout::Awq),
    Kind::folder("w4a16", "int4_g128", Layout::CompressedTensors),
    Kind::folder("w4a16-asym", "int4_asym_g128", Layout::CompressedTensors),
    Kind::folder("w8a16", "int8", Layout::CompressedTensors),
    Kind::folder("w8a8", "w8a8", Layout::CompressedTensors),
    Kind::folder("fp8-dynamic", "fp8_dynamic", Layout::CompressedTensors),
    Kind::folder("fp8-static", "fp8_static", Layout::CompressedTensors),
    Kind { activations: Some(Activations::Float), ..Kind::folder("fp8-w8a16", "fp8_row", Layout::CompressedTensors) },
    Kind::folder("fp8-block", "fp8_block", Layout::CompressedTensors),
    Kind::folder("fp8-plain", "fp8_tensor", Layout::Fp8),
    Kind::folder("fp8-plain-block", "fp8_block", Layout::Fp8),
    Kind::folder("nvfp4", "nvfp4", Layout::CompressedTensors),
    Kind::folder("mxfp4", "mxfp4", Layout::CompressedTensors),
    Kind::folder("llm-int8", "int8", Layout::BitsAndBytes),
    Kind::folder("nf4", "nf4", Layout::BitsAndBytes),
    Kind::folder("nf4-dq", "nf4_dq", Layout::BitsAndBytes),
    Kind::folder("fp4", "fp4", Layout::BitsAndBytes),
    Kind { name: "gguf-bf16", to: "bf16", ..Kind::gguf("bf16") },
    Kind::gguf("q8_0"),
    Kind::gguf("q4_0"),
    Kind::gguf("q4_k_m"),
    Kind::gguf("q6_k"),
    Kind::gguf("q2_k"),
    Kind::gguf("iq4_xs"),
];

/// The built-in model, of which samples are made.
pub(super) struct Source {
    checkpoint: Checkpoint,
    model: Model,
    /// Tokens of a text, to calibrate with and to begin with.
    pub(super) text: Vec<u32>,
    /// Tokens that the model knows.
    pub(super) vocab: usize,
}

/// A model in one kind of files.
pub(super) struct Sample {
    pub(super) path: PathBuf,
    /// Opened again.
    pub(super) checkpoint: Checkpoint,
    pub(super) model: Model,
}

/// What samples are calibrated with and asked to continue: it is about whether they run.
const TEXT: &str = "Once upon a time there was a little dog who lived in a small house near the sea. \
Every morning the dog ran to the water and looked for shells.";

impl Source {
    pub(super) fn open() -> anyhow::Result<Self> {
        let checkpoint = open::demo()?;
        let model = Model::read(&checkpoint)?;
        let tokenizer = open::tokenizer(&checkpoint)?;
        let text = tokenizer.encode(TEXT, true)?;
        let vocab = tokenizer.vocab_size().min(model.spec.vocab);
        Ok(Self { checkpoint, model, text, vocab })
    }

    /// What preflight's rules are asked about.
    pub(super) fn artifact(&self, kind: &Kind) -> anyhow::Result<Artifact> {
        Ok(loading::planned(&self.model, &self.checkpoint, &self.plan(kind)?))
    }

    fn plan(&self, kind: &Kind) -> anyhow::Result<Plan> {
        Ok(Plan::new(&self.model, &self.checkpoint, &kind.recipe()?)?)
    }

    /// Makes the files in `folder`.
    pub(super) fn make(
        &self,
        kind: &Kind,
        folder: &Path,
        progress: &dyn Progress,
    ) -> anyhow::Result<Sample> {
        let plan = self.plan(kind)?;
        let gguf = kind.target == Target::Gguf;
        let path =
            folder.join(if gguf { format!("{}.gguf", kind.name) } else { kind.name.to_owned() });
        let fixed = plan.activations == Activations::Fp8Static;
        let calibration =
            fixed.then(|| Calibration::of(vec![self.text.clone()], "the beginning of a story"));
        let making = Making {
            checkpoint: &self.checkpoint,
            weights: &lathe_quantizers::Stored { model: &self.model, checkpoint: &self.checkpoint },
            plan: &plan,
            name: lathe_demo::NAME,
            out: &path,
            how: &How { calibration, ..How::nearest() },
            threads: default_threads(),
            replace: true,
            measure: false,
        };
        making.carry_out(progress).with_context(|| format!("cannot make {}", kind.name))?;
        let checkpoint = Checkpoint::open(&path)?;
        let model = Model::read(&checkpoint)?;
        Ok(Sample { path, checkpoint, model })
    }
}

impl Sample {
    /// Removes its files.
    pub(super) fn remove(self) {
        let Self { path, checkpoint, model } = self;
        // Mapped files are let go first. What stays goes with the folder around it.
        drop((checkpoint, model));
        let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lathe_base::Silent;
    use lathe_preflight::Rules;

    use super::*;

    #[test]
    fn every_layout_that_rules_know_has_a_sample() {
        let source = Source::open().unwrap();
        let mut layouts = BTreeSet::new();
        let mut names = BTreeSet::new();
        for kind in &KINDS {
            assert!(names.insert(kind.name), "{} twice", kind.name);
            layouts.insert(source.artifact(kind).unwrap().layout);
        }
        let known: BTreeSet<String> = Rules::built_in()
            .engines
            .iter()
            .flat_map(|engine| engine.layouts.iter().map(|layout| layout.layout.clone()))
            .collect();
        assert_eq!(layouts, known);
    }

    #[test]
    fn files_are_what_was_planned() {
        let source = Source::open().unwrap();
        let folder = tempfile::tempdir().unwrap();
        for name in ["fp8-static", "gptq-v2-asym", "q4_k_m"] {
            let kind = Kind::by_name(name).unwrap();
            let sample = source.make(kind, folder.path(), &Silent).unwrap();
            let stored = loading::stored(&sample.model, &sample.checkpoint);
            let planned = source.artifact(kind).unwrap();
            assert_eq!((&stored.layout, &stored.inputs), (&planned.layout, &planned.inputs));
            sample.remove();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
