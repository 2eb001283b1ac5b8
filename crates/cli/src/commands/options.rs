//! Options that several commands share, and what they turn into.

use std::{path::PathBuf, sync::Arc, time::Instant};

use anyhow::{Context, bail};
use clap::Args;
use lathe_api::{Engine, Request, Sampling};
use lathe_base::{Bytes, Progress, Seconds};
use lathe_engine::{Native, Options, serving::Submission};
use lathe_files::Checkpoint;
use lathe_models::Model;
use lathe_optimize::{EngineOrder, Guesses, MemoryUse, Precision};
use lathe_tokens::{Template, Tokenizer};

use crate::{
    commands::{
        answer::{Answer, Guessed, answer},
        optimize::at_least_one,
        system::default_threads,
    },
    open,
};

/// How a model is run.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineArgs {
    /// Threads [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) threads: Option<usize>,
    /// Longest sequence, prompt and answer together, in tokens
    /// [default: the model's, at most 4096]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    pub(crate) context: Option<usize>,
    /// Type of the KV cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = lathe_formats::KvType::NAMES)]
    pub(crate) kv: String,
    /// Most memory to take: weights beyond it are read from disk for every token
    /// [default: what is free]
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<Bytes>,
    /// Keep weights and KV cache from being paged out
    #[arg(long)]
    mlock: bool,
    /// Whether to ask the system for huge pages
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = ["on", "off"])]
    huge_pages: String,
}

impl EngineArgs {
    pub(crate) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(default_threads)
    }

    /// The context asked for, or as much of the model's as is usual.
    pub(crate) fn context(&self, model: &Model) -> usize {
        self.context.unwrap_or(model.spec.context.min(Options::USUAL_CONTEXT))
    }

    /// How to load an opened model, one sequence at a time.
    pub(crate) fn order(&self, checkpoint: &Checkpoint, context: usize) -> EngineOrder {
        EngineOrder {
            engine: "native".to_owned(),
            model: place(checkpoint),
            threads: self.threads(),
            context,
            batch: 1,
            kv: self.kv.clone(),
            precision: Precision::Fast,
            memory: MemoryUse {
                most: self.max_memory,
                lock: self.mlock,
                huge_pages: self.huge_pages == "on",
            },
            guesses: Guesses::Off,
        }
    }
}

/// Who guesses how texts go on.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Speculation")]
pub(crate) struct SpeculationArgs {
    /// Guess how the text goes on and check several tokens in one pass over the weights: `lookup`
    /// goes by what followed when its last words came before. The text is the same, only faster;
    /// where it does not pay, nothing is guessed
    #[arg(long, value_name = "HOW", default_value = "off", value_parser = ["off", "lookup"])]
    speculate: String,
    /// A smaller model with the same tokenizer, which guesses instead. The text is the same
    #[arg(long, value_name = "MODEL", conflicts_with = "speculate")]
    draft: Option<String>,
}

impl SpeculationArgs {
    /// Nobody guesses.
    pub(crate) fn off() -> Self {
        Self { speculate: "off".to_owned(), draft: None }
    }

    /// How to guess; a draft from the hub is fetched.
    pub(crate) fn guesses(&self, progress: &dyn Progress) -> anyhow::Result<Guesses> {
        Ok(match (&self.draft, self.speculate.as_str()) {
            (Some(model), _) => {
                let draft = open::checkpoint(model, progress);
                Guesses::Draft(place(&draft.with_context(|| format!("--draft {model}"))?))
            }
            (None, "lookup") => Guesses::Lookup,
            (None, _) => Guesses::Off,
        })
    }
}

/// What another process opens the same model by.
pub(crate) fn place(checkpoint: &Checkpoint) -> PathBuf {
    match checkpoint.folder {
        lathe_files::Folder::Memory(_) => PathBuf::from(open::DEMO),
        _ => checkpoint.path.clone(),
    }
}

/// A model that reads and writes text.
pub(crate) struct Loaded {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) engine: Native,
    /// From the start of reading until it could answer.
    pub(crate) load: Seconds,
    pub(crate) threads: usize,
}

impl Loaded {
    /// Opens and loads `model`.
    pub(crate) fn new(
        model: &str,
        args: &EngineArgs,
        speculation: &SpeculationArgs,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        let start = Instant::now();
        let checkpoint = open::checkpoint(model, progress)?;
        let read = Model::read(&checkpoint).with_context(|| model.to_owned())?;
        let guesses = speculation.guesses(progress)?;
        let order = EngineOrder { guesses, ..args.order(&checkpoint, args.context(&read)) };
        if order.context > read.spec.context {
            progress.note(&format!(
                "--context {} is more than the {} tokens that the model was made for; expect \
                 nonsense beyond them",
                order.context, read.spec.context
            ));
        }
        let tokenizer = open::tokenizer(&checkpoint)?;
        let engine = open::native(&checkpoint, &order).with_context(|| model.to_owned())?;
        if engine.streamed() > 0 {
            progress.note(&format!(
                "{} of the {} of weights do not fit in memory and are read from disk in every pass: \
                 this will be slow",
                Bytes(engine.streamed()),
                Bytes(engine.info().weight_bytes)
            ));
        }
        let load = start.elapsed().into();
        Ok(Self { checkpoint, tokenizer, engine, load, threads: order.threads })
    }

    /// Runs a request, and counts what was guessed.
    pub(crate) fn answer(
        &self,
        submission: Submission,
        progress: &dyn Progress,
        show: &mut dyn FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Answer> {
        let before = self.engine.done();
        let mut answer = answer(&self.engine, submission, progress, show)?;
        answer.speculation = Guessed::between(&before, &self.engine.done());
        Ok(answer)
    }

    /// The model's own chat template, else the format asked for.
    pub(crate) fn template(&self, format: Option<&str>) -> anyhow::Result<Template> {
        Ok(Template::choose(&self.checkpoint, &self.tokenizer, format)?)
    }
}

/// How the next token is chosen.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Most new tokens
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// 0 always takes the likeliest token, 1 draws from the model's distribution
    #[arg(long, value_name = "T", default_value = "0", value_parser = not_negative)]
    temperature: f32,
    /// Draw from the K likeliest tokens; 0 from all
    #[arg(long, value_name = "K", default_value = "0")]
    top_k: usize,
    /// Draw from the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P", default_value = "1", value_parser = above_zero_to_one)]
    top_p: f32,
    /// Leave out tokens less likely than this share of the likeliest one's probability
    #[arg(long, value_name = "P", default_value = "0", value_parser = zero_to_one)]
    min_p: f32,
    /// Above 1: makes tokens that came before less likely
    #[arg(long, value_name = "X", default_value = "1", value_parser = above_zero)]
    repetition_penalty: f32,
    /// Taken once from the logit of each token generated so far
    #[arg(long, value_name = "X", default_value = "0", allow_negative_numbers = true, value_parser = finite)]
    presence_penalty: f32,
    /// Taken from the logit of a token for each time that it was generated
    #[arg(long, value_name = "X", default_value = "0", allow_negative_numbers = true, value_parser = finite)]
    frequency_penalty: f32,
    /// Added to the logit of a token, as in 1234:-5; -inf bans it. May be given several times
    #[arg(long, value_name = "ID:VALUE", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Text that ends the answer, itself left out. May be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Same seed, same text, with any number of threads
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) seed: u64,
    /// Go on past the token that ends the text
    #[arg(long)]
    ignore_eos: bool,
}

impl SamplingArgs {
    /// The request to continue `prompt` by at most `max_tokens`.
    pub(crate) fn request(
        &self,
        prompt: Vec<u32>,
        max_tokens: usize,
        tokenizer: &Tokenizer,
    ) -> Request {
        Request {
            prompt,
            max_tokens,
            sampling: self.sampling(),
            stop_tokens: tokenizer.stop_tokens().to_vec(),
            stop_strings: self.stop.clone(),
            ignore_stop: self.ignore_eos,
            grammar: None,
        }
    }

    /// Refuses tokens that the model does not have.
    pub(crate) fn check(&self, vocab: usize) -> anyhow::Result<()> {
        match self.logit_bias.iter().find(|(id, _)| *id as usize >= vocab) {
            Some((id, _)) => {
                bail!("--logit-bias: there is no token {id}; the model knows {vocab} tokens")
            }
            None => Ok(()),
        }
    }

    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
        }
    }
}

fn number(text: &str, fits: impl Fn(f32) -> bool, needed: &str) -> Result<f32, String> {
    match text.trim().parse::<f32>() {
        Ok(value) if value.is_finite() && fits(value) => Ok(value),
        _ => Err(format!("{needed} is needed")),
    }
}

fn not_negative(text: &str) -> Result<f32, String> {
    number(text, |x| x >= 0.0, "a number of at least 0")
}

fn above_zero(text: &str) -> Result<f32, String> {
    number(text, |x| x > 0.0, "a number above 0")
}

fn zero_to_one(text: &str) -> Result<f32, String> {
    number(text, |x| (0.0..=1.0).contains(&x), "a number from 0 to 1")
}

fn above_zero_to_one(text: &str) -> Result<f32, String> {
    number(text, |x| x > 0.0 && x <= 1.0, "a number above 0 and at most 1")
}

fn finite(text: &str) -> Result<f32, String> {
    number(text, |_| true, "a number")
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let bad = || "a token id and a number are needed, such as 1234:-5".to_owned();
    let (id, value) = text.split_once(':').ok_or_else(bad)?;
    let id = id.trim().parse().map_err(|_| bad())?;
    match value.trim().parse::<f32>() {
        Ok(value) if !value.is_nan() && value < f32::INFINITY => Ok((id, value)),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_are_an_id_and_a_number() {
        assert_eq!(bias("12:-0.5"), Ok((12, -0.5)));
        assert_eq!(bias("12:-inf"), Ok((12, f32::NEG_INFINITY)));
        for bad in ["12", ":1", "x:1", "12:", "12:nan", "12:inf", "-1:2"] {
            assert!(bias(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_outside_their_range_are_refused() {
        assert!(not_negative("-0.1").is_err() && not_negative("inf").is_err());
        assert!(above_zero_to_one("0").is_err() && above_zero_to_one("1").is_ok());
        assert!(zero_to_one("1.01").is_err() && above_zero("0").is_err());
        assert!(finite("nan").is_err() && finite("-2").is_ok());
    }
}
