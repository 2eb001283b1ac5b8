use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use lathe_base::Progress;
use lathe_files::{Imatrix, ImatrixKind};
use lathe_models::Model;
use lathe_quantizers::{Measured, Stored, measure_importance};
use serde::Serialize;

use crate::{
    args::Global,
    commands::{calibration::CalibrationArgs, optimize::at_least_one, system::default_threads},
    exit::Ended,
    open, ui,
};

/// Options of `lathe imatrix`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe imatrix ./Qwen2.5-1.5B -o qwen.imatrix.gguf --calibration texts.txt
  lathe quantize ./Qwen2.5-1.5B --to q4_k_m --imatrix qwen.imatrix.gguf -o qwen-q4_k_m.gguf
  lathe imatrix model-f16.gguf -o model.dat               llama.cpp's older kind of file

llama.cpp's tools read the result, and Lathe reads theirs.")]
pub(crate) struct ImatrixArgs {
    /// `demo`, Hugging Face folder, GGUF or PyTorch file, or hub id
    model: String,
    /// File to make: GGUF, or llama.cpp's older kind where it ends in .dat
    #[arg(short, long, value_name = "PATH")]
    out: PathBuf,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// The output head's importance as well
    #[arg(long)]
    process_output: bool,
    /// Threads [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    threads: Option<usize>,
    /// Replace an older file of that name
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Made<'a> {
    out: &'a PathBuf,
    tensors: usize,
    chunks: u32,
    chunk_size: u32,
    calibration: &'a lathe_quantizers::CalibrationData,
}

pub(crate) fn run(args: ImatrixArgs, global: &Global) -> anyhow::Result<Ended> {
    let out = &args.out;
    if out.exists() && !args.force {
        bail!("-o {}: there is something of that name; --force replaces it", out.display());
    }
    let bar = ui::Bar::new(global.quiet);
    let checkpoint = open::checkpoint(&args.model, &bar)?;
    let model = Model::read(&checkpoint).with_context(|| args.model.clone())?;
    let calibration = args.calibration.draw(&checkpoint, &model, &bar)?;
    let measured = Measured {
        weights: &Stored { model: &model, checkpoint: &checkpoint },
        calibration: &calibration,
        head: args.process_output,
        threads: args.threads.unwrap_or_else(default_threads),
    };
    bar.note(&format!("at most {} of memory", measured.memory()));
    let imatrix: Imatrix = measure_importance(&measured, &bar)?;
    imatrix.write(out, ImatrixKind::of(out))?;
    bar.clear();
    let about = &calibration.about;
    if global.json {
        let (chunks, chunk_size) = (imatrix.chunks, imatrix.chunk_size);
        let tensors = imatrix.entries.len();
        ui::json(&Made { out, tensors, chunks, chunk_size, calibration: about })?;
    } else {
        ui::out(&format!(
            "{}: {} tensors over {} tokens\nUse it: lathe quantize {} --to q4_k_m --imatrix {}\n",
            ui::green(&format!("Made {}", out.display())),
            imatrix.entries.len(),
            about.tokens,
            args.model,
            out.display()
        ))?;
    }
    Ok(Ended::Well)
}
