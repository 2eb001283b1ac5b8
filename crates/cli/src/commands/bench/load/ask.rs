//! What requests ask for.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use lathe_base::Seconds;
use lathe_bench::{
    Text,
    load::{Asked, Caps, Lengths, Pattern, Source, Tokens, Trace, conversations},
};
use lathe_models::Model;
use lathe_tokens::Tokenizer;

use super::{
    BenchArgs,
    shape::{Kind, Shape},
};

/// The most of a text that prompts are pieces of.
const MOST_TEXT: usize = 8 << 20;

/// The requests, and in a few words what they are.
pub(super) fn source(
    args: &BenchArgs,
    load: &Shape,
    model: &Model,
    tokenizer: Option<&Tokenizer>,
) -> anyhow::Result<(Source, String)> {
    let shared_prefix = args.load.shared_prefix;
    let known = tokenizer.map_or(model.spec.vocab, Tokenizer::vocab_size);
    let vocab = known.min(model.spec.vocab);
    let needs = || tokenizer.context("the model has no tokenizer, which a text needs");
    let text = match &args.text {
        Some(path) => Some(text(path, needs()?)?),
        None => None,
    };
    let of = text.as_ref().map_or("random tokens".to_owned(), |text| text.name.clone());
    let caps = caps(args, model);
    let (asked, words) = match (&load.kind, &args.load.dataset) {
        (Kind::Trace(_), Some(_)) => bail!("--dataset: a trace brings its own lengths"),
        (Kind::Trace(path), None) => {
            let trace = Trace::read(path, &caps).context("--load trace")?;
            let words = format!("{} requests of {}, {of}", trace.entries.len(), path.display());
            (Asked::Trace(trace), words)
        }
        (_, Some(path)) => {
            let tokenizer = needs()?;
            let encode =
                |text: &str| tokenizer.encode(text, false).map_err(|error| error.to_string());
            let prompts = conversations(path, &encode, &caps).context("--dataset")?;
            let words = format!("{} conversations of {}", prompts.len(), path.display());
            (Asked::Prompts(prompts), words)
        }
        (_, None) => {
            let fixed = |given: Option<Lengths>, tokens| given.unwrap_or(Lengths::Fixed(tokens));
            let prompt = fixed(args.load.prompt_lengths, args.timing.prompt_tokens);
            let new = fixed(args.load.new_lengths, args.timing.new_tokens);
            let words = format!("{prompt} tokens of {of}, {new} new");
            (Asked::Drawn { prompt, new }, words)
        }
    };
    let tokens = Tokens { vocab, text };
    Ok((Source { tokens, asked, shared_prefix, seed: args.timing.seed }, words))
}

/// What is taken of a trace or data set: no more than the model has room for.
fn caps(args: &BenchArgs, model: &Model) -> Caps {
    let load = &args.load;
    let room = args.timing.engine.context.unwrap_or(model.spec.context);
    let most_new = load.most_new.unwrap_or(usize::MAX);
    Caps {
        from: Seconds(load.window.0),
        to: Seconds(load.window.1),
        speed: load.speed,
        scale: load.scale,
        most_prompt: load.most_prompt.unwrap_or(usize::MAX),
        most_new: most_new.min(room),
    }
}

/// The levels that are known beforehand: all but those of a sweep.
pub(super) fn levels(load: &Shape, source: &Source) -> Vec<Pattern> {
    match (&load.kind, &source.asked) {
        (Kind::Levels(levels), _) => levels.clone(),
        (Kind::Trace(_), Asked::Trace(trace)) => vec![Pattern::Timed { at: trace.times() }],
        _ => Vec::new(),
    }
}

fn text(path: &Path, tokenizer: &Tokenizer) -> anyhow::Result<Text> {
    let name = path.display().to_string();
    let mut bytes = fs::read(path).with_context(|| format!("--text {name}: cannot be read"))?;
    bytes.truncate(MOST_TEXT);
    let ids = tokenizer.encode_bytes(&bytes, false)?;
    if ids.is_empty() {
        bail!("--text {name} has no tokens");
    }
    Ok(Text { name, ids })
}
