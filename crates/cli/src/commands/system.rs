use clap::Args;
use lathe_base::Bytes;
use lathe_machine::Machine;
use serde::Serialize;

use crate::{args::Global, exit::Ended, ui};

/// Options of `lathe system`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe system
  lathe system --json > machine.json")]
pub(crate) struct SystemArgs {
    /// Threads for the bandwidth measurement [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

#[derive(Serialize)]
struct System {
    machine: Machine,
    /// Kernels that the native engine would use.
    kernels: &'static str,
    fits: Vec<Fit>,
}

/// How large a model this machine runs in a format.
#[derive(Serialize)]
struct Fit {
    format: &'static str,
    bits_per_weight: f64,
    /// Parameters that fit the memory that is free now, a tenth of it left for KV cache and
    /// buffers.
    parameters: u64,
    /// Tokens per second that the bandwidth allows a model of seven billion parameters.
    decode_roof_7b: Option<f64>,
}

pub(crate) fn run(args: SystemArgs, global: &Global) -> anyhow::Result<Ended> {
    let threads = args.threads.unwrap_or_else(default_threads);
    let machine = Machine::analyse(Some(threads));
    let fits = fits(&machine);
    let system = System { machine, kernels: lathe_kernels::isa_name(), fits };
    if global.json {
        ui::json(&system)?;
        return Ok(Ended::Well);
    }
    show(&system)?;
    Ok(Ended::Well)
}

/// Threads that this process may use.
pub(crate) fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn fits(machine: &Machine) -> Vec<Fit> {
    // A wide matrix, so that per-row scales weigh as little as they do in a real model.
    const COLS: usize = 4096;
    ["bf16", "q8_0", "q5_0", "q4_0", "nf4_dq"]
        .into_iter()
        .filter_map(|name| {
            let format = lathe_formats::by_name(name).ok()?;
            let bits = format.row_bytes(COLS) as f64 * 8.0 / COLS as f64;
            let free = machine.memory.available.0 as f64 * 0.9;
            let bandwidth = machine.read_bandwidth.map(|b| b.0 as f64);
            Some(Fit {
                format: format.name(),
                bits_per_weight: bits,
                parameters: (free * 8.0 / bits) as u64,
                decode_roof_7b: bandwidth.map(|b| b * 8.0 / bits / 7e9),
            })
        })
        .collect()
}

fn show(system: &System) -> anyhow::Result<()> {
    let mut list = system.machine.facts();
    list.push(("Native kernels".to_owned(), system.kernels.to_owned()));
    let rows: Vec<Vec<String>> = system
        .fits
        .iter()
        .map(|fit| {
            vec![
                fit.format.to_owned(),
                format!("{:.2}", fit.bits_per_weight),
                format!("{:.1} billion", fit.parameters as f64 / 1e9),
                fit.decode_roof_7b.map_or_else(String::new, |r| format!("{r:.1} tokens/s")),
            ]
        })
        .collect();
    let header = ["format", ">bits/weight", ">largest model here", ">7B decodes at most"];
    let free = Bytes((system.machine.memory.available.0 as f64 * 0.9) as u64);
    ui::out(&format!(
        "{}\n{}{}\n",
        ui::facts(&list),
        ui::table(&header, &rows),
        ui::dim(&format!("Largest model: weights in {free}, nine tenths of what is free now."))
    ))
}
