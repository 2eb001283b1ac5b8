use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use lathe_models::Model;
use lathe_onnx::{Float, Options, Summary};
use serde::Serialize;

use crate::{args::Global, commands::optimize::at_least_one, exit::Ended, graphs, open, ui};

/// Options of `lathe convert`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe convert ./Qwen2.5-1.5B --to onnx                        makes ./Qwen2.5-1.5B-onnx
  lathe convert ./Qwen2.5-1.5B --to onnx --dtype f16 -o qwen-onnx
  lathe quantize ./Qwen2.5-1.5B --to int4_g32 && lathe convert ./Qwen2.5-1.5B-int4_g32 --to onnx
  lathe convert qwen-q4_0.gguf --to onnx --activations int8

The folder holds model.onnx, its numbers in model.onnx.data, genai_config.json for
onnxruntime-genai, and the model's own config.json and tokenizer files. Weights in int2 to int8
formats, q4_0 and q8_0 stay codes (MatMulNBits); those in other formats become numbers of --dtype.")]
pub(crate) struct ConvertArgs {
    /// `demo`, Hugging Face folder, GGUF or PyTorch file, or hub id
    model: String,
    /// Kind of files to make
    #[arg(long, value_name = "KIND")]
    to: Kind,
    /// Folder to make [default: the model's name and the kind, here]
    #[arg(short, long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// What is computed in, and what numbers that are no codes are stored in: f32 for CPUs, f16 for
    /// GPUs
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: Dtype,
    /// What products with coded weights do with their inputs: float (leave them), or int8 (round
    /// them, which is faster on CPUs)
    #[arg(long, value_name = "KIND", default_value = "float")]
    activations: Activations,
    /// Longest sequence, in tokens [default: the model's, or what its rope allows]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    context: Option<usize>,
    /// Replace an older export of that name
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Onnx,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    F32,
    F16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Activations {
    Float,
    Int8,
}

#[derive(Serialize)]
struct Made<'a> {
    model: &'a str,
    out: &'a Path,
    bytes: u64,
    context: usize,
    /// Matrices that stayed codes.
    coded: usize,
    /// Formats whose matrices became numbers.
    expanded: &'a [&'static str],
}

pub(crate) fn run(args: &ConvertArgs, global: &Global) -> anyhow::Result<Ended> {
    let Kind::Onnx = args.to;
    let bar = ui::Bar::new(global.quiet);
    let checkpoint = open::checkpoint(&args.model, &bar)?;
    let model = Model::read(&checkpoint).with_context(|| args.model.clone())?;
    let out = match &args.out {
        Some(out) => Cow::Borrowed(out),
        None => Cow::Owned(PathBuf::from(format!("{}-onnx", super::quantize::stem(&args.model)))),
    };
    let options = Options {
        float: match args.dtype {
            Dtype::F32 => Float::F32,
            Dtype::F16 => Float::F16,
        },
        context: args.context,
        rounded_inputs: matches!(args.activations, Activations::Int8),
    };
    let made = graphs::write(&checkpoint, &model, options, (&out, args.force), &bar)
        .with_context(|| args.model.clone())?;
    bar.clear();
    if global.json {
        let Summary { bytes, context, coded, .. } = made;
        let expanded = &made.expanded;
        let made = Made { model: &args.model, out: &out, bytes: bytes.0, context, coded, expanded };
        ui::json(&made)?;
    } else {
        ui::out(&words(&made, &out))?;
    }
    Ok(Ended::Well)
}

fn words(made: &Summary, out: &Path) -> String {
    let Summary { bytes, context, coded, expanded, tokenizer } = made;
    let mut text = String::new();
    if *coded > 0 {
        text += &ui::note(&format!("{coded} matrices stayed codes"));
    }
    if !expanded.is_empty() {
        let formats = expanded.join(", ");
        text += &ui::note(&format!(
            "matrices in {formats} became numbers: the graph has no such codes"
        ));
    }
    if !tokenizer {
        text += &ui::note("no tokenizer file lies beside the model: its text programs need one");
    }
    let made = ui::green(&format!("Made {}", out.display()));
    text + &format!("{made}: {bytes}, sequences of up to {context} tokens\n")
}
