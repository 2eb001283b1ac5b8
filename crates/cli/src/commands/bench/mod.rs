mod against;
mod load;
mod measure;
mod roofs;
mod show;

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use lathe_base::{AtomicFile, Bytes, Seconds};
use lathe_bench::{Figures, Measure, Round, Workload};
use lathe_machine::{Machine, Sample};
use lathe_stats::Interval;
use serde::Serialize;

pub(crate) use measure::{Asked, limits, measure};

use crate::{
    args::Global,
    commands::{
        optimize::{at_least_one, level},
        options::SpeculationArgs,
    },
    exit::Ended,
    peers::{Peer, Places, named},
    ui,
};

/// Options of `lathe bench`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe bench demo
  lathe bench model-f16.gguf model-q8_0.gguf model-q4_0.gguf --rounds 10
  lathe bench model.gguf --prompt-tokens 512 --new-tokens 128 --streams 1,2,4,8
  lathe bench ./Qwen2.5-1.5B qwen-q4_0.gguf --threads 4 --save bench.json
  lathe bench model-q4_0.gguf --against llama.cpp --prompt-tokens 512 --streams 1,8,16
  lathe bench model.gguf --speculate lookup --text report.txt
  lathe bench model.gguf --load poisson:0.5,1,2,4 --slo ttft=500ms,tpot=50ms
  lathe bench ./Qwen2.5-1.5B --load closed:8 --url http://127.0.0.1:8000 --duration 60s
  lathe bench model.gguf --against ik_llama.cpp --engine-path ik_llama.cpp=../ik_llama.cpp/build/bin

Every trial is a fresh process; rounds go through the models in turn (A B C A B C …), and ratios are
paired by round, so that a drift of the machine falls on all alike. Figures are medians over
rounds. Close other programs: a warning says when they took part of the CPU.")]
pub(crate) struct BenchArgs {
    /// Models: `demo`, Hugging Face folders, GGUF or PyTorch files, or hub ids; the first one is
    /// what the others are compared with
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    /// Numbers of streams to decode together
    #[arg(long, value_name = "LIST", default_value = "1", value_delimiter = ',', value_parser = at_least_one)]
    streams: Vec<usize>,
    /// Keep every raw sample, the machine and its timeline
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Take prompts from a text file instead of random tokens: for what depends on what a text
    /// says, as guesses at how it goes on do
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    #[command(flatten)]
    peers: PeerArgs,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    timing: Timing,
    #[command(flatten)]
    load: load::LoadArgs,
}

/// Other engines to measure beside Lathe's own.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Other engines")]
struct PeerArgs {
    /// Run every model on this engine too, on the same files and prompts: llama.cpp, onnxruntime,
    /// transformers, vllm; or by --engine-path any llama-server or OpenAI-compatible server under a name of your
    /// own. May be given several times
    #[arg(long, value_name = "ENGINE", value_delimiter = ',')]
    against: Vec<String>,
    /// Where an engine's program or folder is, or a server's URL [default: LATHE_LLAMA_CPP and the like, the user's
    /// folder for engines, PATH]. May be given several times
    #[arg(long, value_name = "ENGINE=PATH", value_parser = named)]
    engine_path: Vec<(String, String)>,
    /// Further arguments of an engine's program, as in llama.cpp='-ub 1024'. May be given several
    /// times
    #[arg(long, value_name = "ENGINE=ARGS", value_parser = named)]
    engine_args: Vec<(String, String)>,
}

/// What the server at `--url` is called.
const SERVER: &str = "openai";

impl PeerArgs {
    /// The engines asked for, each found and asked what it is; first among them the server at `url`.
    fn find(&self, url: Option<&str>) -> anyhow::Result<Vec<Peer>> {
        let mut places =
            Places { paths: self.engine_path.clone(), arguments: self.engine_args.clone() };
        let server = url.map(|url| {
            if !url.starts_with("http://") && !url.starts_with("https://") {
                bail!("--url {url}: write it like http://127.0.0.1:8000");
            }
            places.paths.push((SERVER.to_owned(), url.to_owned()));
            Ok(SERVER.to_owned())
        });
        let names: Vec<String> = server
            .into_iter()
            .chain(self.against.iter().cloned().map(Ok))
            .collect::<anyhow::Result<_>>()?;
        for (flag, list) in
            [("--engine-path", &self.engine_path), ("--engine-args", &self.engine_args)]
        {
            if let Some((name, _)) = list.iter().find(|(name, _)| !names.contains(name)) {
                bail!("{flag} {name}: add --against {name} to measure it");
            }
        }
        let mut found: Vec<Peer> = Vec::new();
        for name in &names {
            if !found.iter().any(|peer| peer.name == *name) {
                found.push(Peer::find(name, &places)?);
            }
        }
        Ok(found)
    }
}

/// How speed is measured.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Measuring")]
pub(crate) struct Timing {
    /// Prompt tokens of a request
    #[arg(long, value_name = "N", default_value = "128", value_parser = at_least_one)]
    pub(crate) prompt_tokens: usize,
    /// New tokens of a request
    #[arg(long, value_name = "N", default_value = "64", value_parser = at_least_two)]
    pub(crate) new_tokens: usize,
    /// Requests of a trial
    #[arg(long, value_name = "N", default_value = "3", value_parser = at_least_one)]
    pub(crate) requests: usize,
    /// Requests before them that do not count
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) warmup: usize,
    /// Trials of every model
    #[arg(long, value_name = "N", default_value = "5", value_parser = at_least_one)]
    pub(crate) rounds: usize,
    /// Two-sided confidence of the intervals
    #[arg(long, value_name = "LEVEL", default_value = "0.95", value_parser = level)]
    pub(crate) level: f64,
    /// Seed of the prompts, which are random tokens
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) seed: u64,
    /// Stop a trial after this long
    #[arg(long, value_name = "TIME", default_value = "30m")]
    pub(crate) trial_timeout: Seconds,
    #[command(flatten)]
    pub(crate) engine: super::options::EngineArgs,
}

impl Timing {
    /// What each trial does.
    pub(crate) fn workload(&self, streams: &[usize]) -> Workload {
        Workload {
            prompt_tokens: self.prompt_tokens,
            new_tokens: self.new_tokens,
            at_least: lathe_base::Seconds(0.3),
            requests: self.requests,
            warmup: self.warmup,
            streams: streams.to_vec(),
            seed: self.seed,
            vocab: None,
            text: None,
        }
    }
}

/// Everything that was measured, as raw as it was.
#[derive(Serialize)]
pub(crate) struct Bench {
    pub(crate) models: Vec<Measured>,
    /// How many times as good Lathe's own engine is as others, paired by round.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) advantages: Vec<Advantage>,
    /// What was not measured because the engine would not load it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) refused: Vec<Refused>,
    /// What the machine can do at most, before and after the trials.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) roofs: Vec<lathe_kernels::Peaks>,
    pub(crate) workload: Workload,
    pub(crate) threads: usize,
    pub(crate) level: f64,
    pub(crate) warnings: Vec<String>,
    pub(crate) machine: Machine,
    /// Every trial with all its stamps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) rounds: Vec<Round>,
    /// What the machine did before, during and after.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) timeline: Vec<Sample>,
}

/// How many times as good a candidate is as another in one figure: above 1 it is faster, or takes
/// less.
#[derive(Serialize)]
pub(crate) struct Advantage {
    pub(crate) measure: Measure,
    pub(crate) of: String,
    pub(crate) over: String,
    pub(crate) times: Interval,
}

/// A model that an engine does not load.
#[derive(Serialize)]
pub(crate) struct Refused {
    pub(crate) model: String,
    pub(crate) engine: String,
    pub(crate) reason: String,
}

/// One model's figures on one engine.
#[derive(Serialize)]
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) model: String,
    pub(crate) engine: String,
    pub(crate) version: Option<String>,
    /// What the engine was started with.
    pub(crate) order: serde_json::Value,
    pub(crate) shares: Option<roofs::Shares>,
    /// Bytes of its stored tensors.
    pub(crate) size: Bytes,
    pub(crate) figures: Figures,
    /// Decode speed over the first model's, paired by round.
    pub(crate) ratio: Option<Interval>,
}

pub(crate) fn run(args: BenchArgs, global: &Global) -> anyhow::Result<Ended> {
    if args.load.is_asked_for() {
        return load::run(&args, global);
    }
    let bar = ui::Bar::new(global.quiet);
    let against = args.peers.find(None)?;
    let asked = Asked {
        models: &args.models,
        against: &against,
        guesses: args.speculation.guesses(&bar)?,
        text: args.text.as_deref(),
        timing: &args.timing,
        streams: &args.streams,
    };
    let mut bench = measure(&asked, &bar)?;
    bar.clear();
    if let Some(path) = &args.save {
        AtomicFile::write_all(path, &serde_json::to_vec(&bench)?)
            .with_context(|| format!("--save: cannot write {}", path.display()))?;
    }
    if global.json {
        // The raw samples are long: they are for --save.
        bench.workload.text.iter_mut().for_each(|text| text.ids.clear());
        bench.rounds.clear();
        bench.timeline.clear();
        ui::json(&bench)?;
    } else {
        ui::out(&show::text(&bench))?;
    }
    if bench.models.iter().all(|model| model.figures.rounds == 0) {
        let why = bench.warnings.first().map_or("", String::as_str);
        bail!("no trial came to its end: {why}");
    }
    Ok(Ended::Well)
}

fn at_least_two(text: &str) -> Result<usize, String> {
    match at_least_one(text)? {
        1 => Err("a whole number of at least 2 is needed".to_owned()),
        n => Ok(n),
    }
}
