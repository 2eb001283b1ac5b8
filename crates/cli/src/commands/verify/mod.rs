//! Whether engines compute the same thing on the same files, before they are compared.

mod checks;
mod reference;
mod show;

use anyhow::{Context, bail};
use clap::Args;
use lathe_api::Engine;
use lathe_base::{Progress, Seconds};
use lathe_files::{Checkpoint, Folder};
use lathe_models::Model;
use lathe_tokens::Tokenizer;
use serde::Serialize;

use crate::{
    args::Global,
    commands::{engines::KNOWN, options::EngineArgs},
    exit::Ended,
    loading, open,
    peers::{Peer, Places, Served, named},
    ui,
};
use checks::{Check, Outcome};
use reference::{Noise, Reference};

/// Options of `lathe verify`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe verify qwen-q4_0.gguf --engines llama.cpp
  lathe verify ./Qwen2.5-1.5B --engines transformers,vllm --engine-path transformers=./venv
  lathe verify ./Qwen2.5-1.5B --json

Asked of each engine: the tokens of texts, what its chat template makes of a conversation, the
weights that it multiplies with, the probabilities of every token at some positions, and what it
writes when the likeliest token is always taken. What an engine cannot be asked counts for nothing. The reference is Lathe's own engine computing exactly (f32); how far its usual
arithmetic and bfloat16 are from that is the noise that others are allowed.

Exit codes: 0 all engines agree, 3 one deviates or does not start.")]
pub(crate) struct VerifyArgs {
    /// Hugging Face folder or GGUF file
    model: String,
    /// Engines to ask [default: all that are found and load these files]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    engines: Vec<String>,
    /// Where an engine's program or folder is, or a server's address. May be given several times
    #[arg(long, value_name = "ENGINE=PATH", value_parser = named)]
    engine_path: Vec<(String, String)>,
    /// More arguments for an engine. May be given several times
    #[arg(long, value_name = "ENGINE=ARGUMENTS", value_parser = named)]
    engine_args: Vec<(String, String)>,
    /// Tokens to write after each prompt
    #[arg(long, value_name = "N", default_value_t = 32)]
    tokens: usize,
    /// What an engine may take until it has started, and be silent for
    #[arg(long, value_name = "TIME", default_value = "5m")]
    patience: Seconds,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What was found.
#[derive(Serialize)]
struct Verified {
    model: String,
    /// What the engines are held against.
    reference: String,
    noise: Noise,
    engines: Vec<Asked>,
    /// Engines that do not read these files, with the reason.
    left_out: Vec<LeftOut>,
}

/// An engine, and why it cannot be asked.
type LeftOut = (String, String);

/// What an engine answered.
#[derive(Serialize)]
struct Asked {
    engine: String,
    version: Option<String>,
    /// Why it could not be asked at all.
    failed: Option<String>,
    checks: Vec<Check>,
}

impl Asked {
    fn deviates(&self) -> bool {
        self.failed.is_some() || self.checks.iter().any(|c| c.outcome == Outcome::Deviates)
    }
}

/// The model that is verified.
struct Subject {
    checkpoint: Checkpoint,
    model: Model,
    tokenizer: std::sync::Arc<Tokenizer>,
    vocab: usize,
    /// Room for every probe and what is written after it.
    context: usize,
}

pub(crate) fn run(args: &VerifyArgs, global: &Global) -> anyhow::Result<Ended> {
    let bar = ui::Bar::new(global.quiet);
    let subject = Subject::open(args, &bar)?;
    let (peers, left_out) = subject.peers(args)?;
    bar.at("Lathe's own engine, exactly", 0, 0);
    let reference = Reference::new(&subject, args)?;
    let noise = reference.noise(&subject, args, &bar)?;
    let mut engines = Vec::new();
    for peer in &peers {
        bar.check()?;
        bar.at(&format!("{} starts", peer.name), 0, 0);
        engines.push(subject.ask(peer, args, (&reference, &noise), &bar)?);
    }
    bar.clear();
    let reference =
        "native, exact (f32 arithmetic on the decoded weights, f32 KV cache)".to_owned();
    let model = args.model.clone();
    let found = Verified { model, reference, noise, engines, left_out };
    if global.json {
        ui::json(&found)?;
    } else {
        ui::out(&show::text(&found))?;
    }
    Ok(if found.engines.iter().any(Asked::deviates) { Ended::Unmet } else { Ended::Well })
}

impl Subject {
    fn open(args: &VerifyArgs, progress: &dyn Progress) -> anyhow::Result<Self> {
        let checkpoint = open::checkpoint(&args.model, progress)?;
        if matches!(checkpoint.folder, Folder::Memory(_)) {
            bail!(
                "the built-in model has no files that other engines could read; `lathe quantize \
                 demo --to q8_0 -o demo.gguf` makes one, `--to bf16 -o demo-bf16` a folder"
            );
        }
        let model = Model::read(&checkpoint).with_context(|| args.model.clone())?;
        let tokenizer = open::tokenizer(&checkpoint)?;
        let vocab = tokenizer.vocab_size().min(model.spec.vocab);
        let wanted = args.engine.context.unwrap_or(reference::LONGEST + args.tokens + 2);
        let context = wanted.min(model.spec.context);
        if context < args.tokens + reference::SHORTEST {
            bail!("--tokens {}: a context of {context} tokens has no room for them", args.tokens);
        }
        Ok(Self { checkpoint, model, tokenizer, vocab, context })
    }

    /// The engines asked for, else those that are here; and those of them that do not read these
    /// files, with the reason.
    fn peers(&self, args: &VerifyArgs) -> anyhow::Result<(Vec<Peer>, Vec<LeftOut>)> {
        let paths = args.engine_path.clone();
        let places = Places { paths, arguments: args.engine_args.clone() };
        let find = |name: &str| -> anyhow::Result<Peer> {
            Peer::find(name, &places).map_err(|why| {
                anyhow::anyhow!(format!("{why:#}").replace("--against", "--engines"))
            })
        };
        let found: Vec<Peer> = if args.engines.is_empty() {
            let mut names: Vec<&str> = KNOWN.to_vec();
            for (name, _) in &args.engine_path {
                if !names.contains(&name.as_str()) {
                    names.push(name);
                }
            }
            names.into_iter().filter_map(|name| find(name).ok()).collect()
        } else {
            args.engines.iter().map(|name| find(name)).collect::<anyhow::Result<_>>()?
        };
        let artifact = loading::stored(&self.model, &self.checkpoint);
        let (mut peers, mut left_out) = (Vec::new(), Vec::new());
        for peer in found {
            match peer.refuses(&artifact) {
                Some(why) => left_out.push((peer.name, why)),
                None => peers.push(peer),
            }
        }
        if peers.is_empty() {
            let why: Vec<String> =
                left_out.iter().map(|(name, why)| format!("; {name}: {why}")).collect();
            bail!(
                "no engine that reads these files was found: `lathe engines` lists what is here, \
                 --engine-path NAME=PATH says where one is{}",
                why.concat()
            );
        }
        Ok((peers, left_out))
    }

    /// Starts an engine and asks it everything. An engine that breaks says so in its place.
    fn ask(
        &self,
        peer: &Peer,
        args: &VerifyArgs,
        (reference, noise): (&Reference, &Noise),
        progress: &dyn Progress,
    ) -> anyhow::Result<Asked> {
        let kv = "f16";
        let order = peer.order(&Served {
            model: &self.checkpoint.path,
            threads: args.engine.threads(),
            context: self.context,
            streams: 1,
            kv,
            kv_bytes: self.model.spec.cache_bytes(self.context, 1, open::kv(kv)?).0,
            vocab: self.vocab,
            avoid: &[],
            patience: args.patience,
        })?;
        let name = peer.name.clone();
        let engine = match order.start() {
            Ok((engine, _)) => engine,
            Err(why) => {
                let failed = Some(format!("{why:#}"));
                return Ok(Asked { engine: name, version: None, failed, checks: Vec::new() });
            }
        };
        let engine: &dyn Engine = &*engine;
        let mut checks = Vec::new();
        for (what, check) in checks::ALL {
            progress.check()?;
            progress.at(&format!("{name}: {what}"), checks.len() as u64, checks::ALL.len() as u64);
            checks.push(check(self, engine, reference, noise)?);
        }
        let version = Some(engine.info().version.clone());
        Ok(Asked { engine: name, version, failed: None, checks })
    }
}
