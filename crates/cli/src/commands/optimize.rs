use std::path::PathBuf;

use anyhow::{anyhow, bail};
use clap::Args;
use lathe_base::{Bytes, Seconds};
use lathe_optimize::{Coding, EngineChoice, NATIVE, PLAIN, Requirements, WAYS};
use lathe_quantizers::{METHODS, Method};
use lathe_report::Weights;

use crate::{
    args::Global,
    commands::quantize::{goal, prune},
    exit::Ended,
    peers::{Peer, Places, named},
    walk,
};

/// How long one of the usual configurations may take to make.
const USUAL_MAKE: Seconds = Seconds(3600.0);

/// Options of `lathe optimize`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe optimize
      everything on the built-in demo model: about two minutes
  lathe optimize ./Qwen2.5-1.5B --max-memory 2GiB --min-decode-tps 20 --max-kl 0.02
      the best configuration that meets all three, each with 95 % confidence
  lathe optimize org/name --context 4096 --batch 4 --cost-per-hour 1.20 --data my-texts.jsonl
      plan for four sequences of 4,096 tokens; quality on your own texts; cost per million tokens
  lathe optimize ./Qwen2.5-1.5B --formats q4_0,int4_g128+gptq --engines llama.cpp,vllm
      the same on other engines, each asked first whether it computes the same
  lathe optimize --resume lathe-runs/20261121-101500
      go on with an interrupted run

With no requirements everything is tried and the trade-offs are reported. Exit code 3: no
configuration meets the requirements; 4: the measurements do not decide.")]
pub(crate) struct OptimizeArgs {
    /// Hugging Face folder, GGUF or PyTorch file, or hub id `org/name[@revision]`
    /// [default: the built-in demo model]
    pub(crate) model: Option<String>,

    /// Folder of the run [default: lathe-runs/DATE-TIME]
    #[arg(long, value_name = "FOLDER", conflicts_with = "resume")]
    pub(crate) run: Option<PathBuf>,

    /// Go on with an interrupted run; its own options count
    #[arg(long, value_name = "RUN", conflicts_with = "model")]
    pub(crate) resume: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) needs: Needs,

    #[command(flatten)]
    pub(crate) engines: Engines,

    #[command(flatten)]
    pub(crate) measuring: Measuring,
}

/// What runs the configurations.
#[derive(Args)]
#[command(next_help_heading = "Engines")]
pub(crate) struct Engines {
    /// Engines that run every configuration that they load, beside Lathe's own: llama.cpp,
    /// onnxruntime, transformers, vllm; by --engine-path any llama-server under a name of your own,
    /// or a running server, which is asked for the model as it came; or `all` that are found
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with = "resume")]
    engines: Vec<String>,
    /// Where an engine's program or folder is, or a server's URL. May be given several times
    #[arg(long, value_name = "ENGINE=PATH", value_parser = named, conflicts_with = "resume")]
    engine_path: Vec<(String, String)>,
    /// Further arguments of an engine's program, as in vllm='--tensor-parallel-size 2'. May be given
    /// several times
    #[arg(long, value_name = "ENGINE=ARGS", value_parser = named, conflicts_with = "resume")]
    engine_args: Vec<(String, String)>,
}

/// What the deployment needs.
#[derive(Args)]
#[command(next_help_heading = "Requirements")]
pub(crate) struct Needs {
    /// Most memory while it runs, KV cache at --context and --batch included
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<Bytes>,
    /// Most bytes on disk
    #[arg(long, value_name = "SIZE")]
    max_size: Option<Bytes>,
    /// Fewest tokens per second that one stream decodes
    #[arg(long, value_name = "RATE", value_parser = positive)]
    min_decode_tps: Option<f64>,
    /// Fewest tokens per second of all --batch streams together
    #[arg(long, value_name = "RATE", value_parser = positive)]
    min_throughput: Option<f64>,
    /// Longest time to first token, for --prompt-tokens
    #[arg(long, value_name = "TIME")]
    max_ttft: Option<Seconds>,
    /// Longest inter-token latency (90th percentile)
    #[arg(long, value_name = "TIME")]
    max_itl: Option<Seconds>,
    /// Largest mean KL divergence from the unquantized model, in nats per token
    #[arg(long, value_name = "NATS", value_parser = positive)]
    max_kl: Option<f64>,
    /// Largest increase of perplexity, as `2%` or 0.02
    #[arg(long, value_name = "SHARE", value_parser = share)]
    max_ppl_increase: Option<f64>,
    /// Smallest share of positions where the likeliest token stays the same, as `95%` or 0.95
    #[arg(long, value_name = "SHARE", value_parser = share)]
    min_top1: Option<f64>,
    /// Smallest multiple-choice accuracy, as `60%` or 0.6
    #[arg(long, value_name = "SHARE", value_parser = share)]
    min_accuracy: Option<f64>,
    /// Highest price of a million generated tokens (needs --cost-per-hour)
    #[arg(long, value_name = "PRICE", value_parser = positive, requires = "cost_per_hour")]
    max_cost: Option<f64>,
    /// Longest sequence that the deployment must hold, in tokens
    /// [default: the model's, at most 4096]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    pub(crate) context: Option<usize>,
    /// Sequences at once
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one)]
    pub(crate) batch: usize,
    /// Price of this machine per hour, in any currency
    #[arg(long, value_name = "PRICE", value_parser = positive)]
    pub(crate) cost_per_hour: Option<f64>,
    /// Weights of throughput, memory and quality in the balanced pick
    #[arg(long, value_name = "T,M,Q", default_value = "0.4,0.3,0.3", value_parser = weights)]
    pub(crate) weights: Weights,
}

/// How it is measured.
#[derive(Args)]
#[command(next_help_heading = "Measuring")]
pub(crate) struct Measuring {
    /// What weights are made into, as in q8_0,q4_k_m,int4_g128+gptq: what `lathe quantize --to`
    /// takes, or bits per weight to choose formats for, as in 4.25bpw; and with it a method, what
    /// --prune takes, `rotate` and `drop:LAYERS`, as in q4_0+gptq+sparsegpt:2:4
    /// [default: the usual ones]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    formats: Vec<String>,
    /// Longest time that making one configuration may take, as estimated before
    /// [default: 1h; any with --formats or --exhaustive]
    #[arg(long, value_name = "TIME")]
    max_make: Option<Seconds>,
    /// Types of the KV cache: the first is every configuration's, further ones are tried on the
    /// model as it came, and on --formats [default: f16; without --formats also int8]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = lathe_formats::KvType::NAMES)]
    kv: Vec<String>,
    /// Threads of the engine [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) threads: Option<usize>,
    /// Text for quality: a file, or JSONL with `text` or `messages`
    /// [default: sixty short stories]
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// Texts for methods that calibrate: a file, or JSONL with `text` or `messages`
    /// [default: built-in texts of many kinds]
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: Option<PathBuf>,
    /// Multiple-choice items, JSONL with `context`, `choices`, `answer`
    /// [default: 300 items for the demo model, none for others]
    #[arg(long, value_name = "FILE")]
    pub(crate) choices: Option<PathBuf>,
    /// Most tokens of text that quality is measured on
    #[arg(long, value_name = "N", default_value = "32768", value_parser = at_least_one)]
    pub(crate) max_tokens: usize,
    /// Prompt tokens of a timed request [default: 128, less for a short context]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) prompt_tokens: Option<usize>,
    /// New tokens of a timed request [default: 64, less for a short context]
    #[arg(long, value_name = "N", value_parser = at_least_two)]
    pub(crate) new_tokens: Option<usize>,
    /// Timed requests in a trial
    #[arg(long, value_name = "N", default_value = "3", value_parser = at_least_one)]
    pub(crate) requests: usize,
    /// Rounds of every configuration
    #[arg(long, value_name = "N", default_value = "5", value_parser = at_least_two)]
    pub(crate) rounds: usize,
    /// Most rounds of a configuration whose speed is undecided
    #[arg(long, value_name = "N", default_value = "20", value_parser = at_least_two)]
    pub(crate) max_rounds: usize,
    /// Two-sided confidence of the intervals
    #[arg(long, value_name = "LEVEL", default_value = "0.95", value_parser = level)]
    pub(crate) level: f64,
    /// Seed of prompts and resampling
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) seed: u64,
    /// Try everything, also what cannot win any more
    #[arg(long)]
    pub(crate) exhaustive: bool,
    /// What each configuration is asked to write, for the eye
    #[arg(long, value_name = "TEXT", default_value = "Once upon a time")]
    pub(crate) prompt: String,
    /// Stop a trial after this long
    #[arg(long, value_name = "TIME", default_value = "30m")]
    pub(crate) trial_timeout: Seconds,
}

pub(crate) fn run(args: Box<OptimizeArgs>, global: &Global) -> anyhow::Result<Ended> {
    walk::run(&args, global)
}

impl Needs {
    pub(crate) fn requirements(&self) -> Requirements {
        Requirements {
            max_memory: self.max_memory,
            max_size: self.max_size,
            min_decode_tps: self.min_decode_tps,
            min_throughput: self.min_throughput,
            max_ttft: self.max_ttft,
            max_itl: self.max_itl,
            max_kl: self.max_kl,
            max_ppl_increase: self.max_ppl_increase,
            min_top1: self.min_top1,
            min_accuracy: self.min_accuracy,
            max_cost: self.max_cost,
        }
    }
}

impl Engines {
    /// The engines to try, each of which is there.
    pub(crate) fn choices(&self) -> anyhow::Result<Vec<EngineChoice>> {
        let places =
            Places { paths: self.engine_path.clone(), arguments: self.engine_args.clone() };
        let mut names: Vec<String> = Vec::new();
        for name in &self.engines {
            let found = match name.as_str() {
                "all" => Peer::all(&places).into_iter().map(|peer| peer.name).collect(),
                // It runs everything anyway.
                NATIVE => Vec::new(),
                name => vec![Peer::find_for("--engines", name, &places)?.name],
            };
            for name in found {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        for (flag, list) in
            [("--engine-path", &self.engine_path), ("--engine-args", &self.engine_args)]
        {
            if let Some((name, _)) = list.iter().find(|(name, _)| !names.contains(name)) {
                bail!("{flag} {name}: add --engines {name} to try it");
            }
        }
        Ok(names.into_iter().map(|name| places.choice(name)).collect())
    }
}

impl Measuring {
    /// What weights are made into: what was asked for, or the usual.
    pub(crate) fn formats(&self) -> anyhow::Result<Vec<String>> {
        if self.formats.is_empty() {
            let usual = WAYS.iter().map(|way| match way.method {
                PLAIN => way.format.to_owned(),
                method => format!("{}+{method}", way.format),
            });
            return Ok(usual.collect());
        }
        let coding = |text: &String| coding(text).map_err(|why| anyhow!("--formats {text}: {why}"));
        let mut asked = self.formats.iter().map(coding).collect::<anyhow::Result<Vec<_>>>()?;
        asked.dedup();
        Ok(asked)
    }

    /// The KV cache of every configuration, and further ones to try.
    pub(crate) fn kv(&self) -> (String, Vec<String>) {
        let owned = |name: &str| name.to_owned();
        match self.kv.split_first() {
            Some((first, rest)) => (first.clone(), rest.to_vec()),
            None if self.chose_formats() => (owned("f16"), Vec::new()),
            None => (owned("f16"), vec![owned("int8")]),
        }
    }

    /// The longest that making one configuration may take.
    pub(crate) fn max_make(&self) -> Option<Seconds> {
        self.max_make.or((!self.chose_formats() && !self.exhaustive).then_some(USUAL_MAKE))
    }

    /// Whether the user chose the formats.
    pub(crate) fn chose_formats(&self) -> bool {
        !self.formats.is_empty()
    }
}

/// The name of what `--formats` asks for, however it was written.
fn coding(text: &str) -> anyhow::Result<String> {
    let mut coding = Coding::parse(text).map_err(anyhow::Error::msg)?;
    if let Some(asked) = &mut coding.prune {
        *asked = prune(asked).map_err(anyhow::Error::msg)?.to_string();
    }
    if coding.budget().is_some() {
        if coding.method != PLAIN || coding.prune.is_some() {
            bail!("formats for a budget are searched with methods of their own; give it alone");
        }
        return Ok(coding.name());
    }
    let method = Method::by_name(&coding.method).ok_or_else(|| {
        let known: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
        anyhow!("there is no method `{}`; choose from {}", coding.method, known.join(", "))
    })?;
    let recipe = goal(&coding.format).map_err(anyhow::Error::msg)?.recipe()?;
    if !(method.suits)(recipe.to) {
        bail!("{} is not for {}", method.name, coding.format);
    }
    Ok(coding.name())
}

pub(crate) fn positive(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("a number above 0 is needed".to_owned()),
    }
}

/// `2%` or `0.02`.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    let (number, scale) = match text.trim().strip_suffix('%') {
        Some(number) => (number, 0.01),
        None => (text.trim(), 1.0),
    };
    match number.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value * scale),
        _ => Err("a share is needed, such as 2% or 0.02".to_owned()),
    }
}

pub(crate) fn level(text: &str) -> Result<f64, String> {
    match share(text)? {
        level if (0.5..1.0).contains(&level) => Ok(level),
        _ => Err("a confidence between 0.5 and 1 is needed, such as 0.95".to_owned()),
    }
}

pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(value) if value >= 1 => Ok(value),
        _ => Err("a whole number of at least 1 is needed".to_owned()),
    }
}

fn at_least_two(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(value) if value >= 2 => Ok(value),
        _ => Err("a whole number of at least 2 is needed".to_owned()),
    }
}

fn weights(text: &str) -> Result<Weights, String> {
    let bad = || "three numbers that sum to more than 0 are needed, such as 0.4,0.3,0.3".to_owned();
    let parts: Vec<f64> = text
        .split(',')
        .map(|part| part.trim().parse().map_err(|_| bad()))
        .collect::<Result<_, _>>()?;
    let sum: f64 = parts.iter().sum();
    match parts[..] {
        [throughput, memory, quality] if sum > 0.0 && parts.iter().all(|p| *p >= 0.0) => {
            let (throughput, memory, quality) = (throughput / sum, memory / sum, quality / sum);
            Ok(Weights { throughput, memory, quality })
        }
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_as_percent_or_fraction() {
        assert_eq!(share("2%"), Ok(0.02));
        assert_eq!(share("0.02"), Ok(0.02));
        assert!(share("-1%").is_err() && share("much").is_err());
        assert_eq!(level("0.9"), Ok(0.9));
        assert!(level("1").is_err());
    }

    #[test]
    fn weights_are_brought_to_a_sum_of_one() {
        let w = weights("2,1,1").unwrap();
        assert_eq!((w.throughput, w.memory, w.quality), (0.5, 0.25, 0.25));
        assert!(weights("1,2").is_err() && weights("0,0,0").is_err() && weights("1,1,-1").is_err());
    }
}
