//! Whether engines compute the same thing on the same files, before they are compared.

mod show;

use anyhow::{Context, bail};
use clap::Args;
use lathe_base::{Progress, Seconds};
use lathe_files::Folder;
use lathe_optimize::EngineOrder;
use lathe_report::Conformance;
use serde::Serialize;

use crate::{
    args::Global,
    commands::options::EngineArgs,
    conformance::{Noise, Reference, Subject, TOKENS, room},
    exit::Ended,
    loading, open,
    peers::{Peer, PeerOrder, Places, Served, named},
    ui,
};

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
    #[arg(long, value_name = "N", default_value_t = TOKENS)]
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
    #[serde(flatten)]
    found: Conformance,
}

pub(crate) fn run(args: &VerifyArgs, global: &Global) -> anyhow::Result<Ended> {
    let bar = ui::Bar::new(global.quiet);
    let subject = subject(args, &bar)?;
    let (peers, left_out) = find(&subject, args)?;
    bar.at("Lathe's own engine, exactly", 0, 0);
    let reference = Reference::new(&subject)?;
    let noise = reference.noise(&subject, &bar)?;
    let mut engines = Vec::new();
    for peer in &peers {
        bar.check()?;
        bar.at(&format!("{} starts", peer.name), 0, 0);
        let order = order(&subject, peer, args, &bar)?;
        let found = subject.ask((&peer.name, order), (&reference, &noise), &bar)?;
        engines.push(Asked { engine: peer.name.clone(), found });
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
    Ok(if found.engines.iter().any(|asked| asked.found.deviates()) {
        Ended::Unmet
    } else {
        Ended::Well
    })
}

fn subject(args: &VerifyArgs, progress: &dyn Progress) -> anyhow::Result<Subject> {
    let checkpoint = open::checkpoint(&args.model, progress)?;
    if matches!(checkpoint.folder, Folder::Memory(_)) {
        bail!(
            "the built-in model has no files that other engines could read; `lathe quantize demo \
             --to q8_0 -o demo.gguf` makes one, `--to bf16 -o demo-bf16` a folder"
        );
    }
    let context = args.engine.context.unwrap_or_else(|| room(args.tokens));
    let order = args.engine.order(&checkpoint, context);
    Subject::open(checkpoint, order, args.tokens).with_context(|| args.model.clone())
}

/// The engines asked for, else those that are here; and those of them that do not read these
/// files, with the reason.
fn find(subject: &Subject, args: &VerifyArgs) -> anyhow::Result<(Vec<Peer>, Vec<LeftOut>)> {
    let paths = args.engine_path.clone();
    let places = Places { paths, arguments: args.engine_args.clone() };
    let found = if args.engines.is_empty() {
        Peer::all(&places)
    } else {
        let find = |name: &String| Peer::find_for("--engines", name, &places);
        args.engines.iter().map(find).collect::<anyhow::Result<_>>()?
    };
    let artifact = loading::stored(&subject.model, &subject.checkpoint);
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

fn order(
    subject: &Subject,
    peer: &Peer,
    args: &VerifyArgs,
    progress: &dyn Progress,
) -> anyhow::Result<PeerOrder> {
    let EngineOrder { threads, context, kv, .. } = &subject.order;
    peer.order(
        &Served {
            model: &subject.checkpoint.path,
            threads: *threads,
            context: *context,
            streams: 1,
            kv,
            kv_bytes: subject.model.spec.cache_bytes(*context, 1, open::kv(kv)?).0,
            vocab: subject.vocab,
            avoid: &[],
            patience: args.patience,
        },
        progress,
    )
}
