use std::io::{IsTerminal, Read};

use anyhow::{Context, bail};
use clap::Args;
use lathe_api::Engine;
use lathe_base::Progress;
use lathe_engine::serving::{Distribution, LogProbsWanted, Submission};
use serde::Serialize;

use crate::{
    args::Global,
    commands::{
        answer::Answer,
        likely::{self, Likely},
        options::{EngineArgs, Loaded, SamplingArgs, SpeculationArgs},
        structure::{self, StructureArgs},
    },
    exit::Ended,
    open::plain,
    ui,
};

/// New tokens where nothing else is asked for.
const USUAL_LENGTH: usize = 256;

/// Options of `lathe generate`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe generate demo \"Once upon a time\"
  lathe generate ./Qwen2.5-1.5B \"The capital of France is\" --max-tokens 8 --stats
  lathe generate model.gguf \"Dear diary\" --temperature 0.8 --top-p 0.95 --seed 7
  cat prompt.txt | lathe generate model.gguf - --json
  lathe generate model.gguf \"Is Rome in Italy? \" --choice yes --choice no
  lathe generate model.gguf \"A cat as JSON: \" --json-schema cat.json --temperature 0.7
  lathe generate model.gguf \"Dear diary\" --draft small.gguf --stats
  lathe generate model.gguf - --speculate lookup < report.txt
  lathe generate model.gguf \"In 2 + 3 * 4: \" --grammar arithmetic.gbnf
  lathe generate model.gguf \"Paris is in France\" -n 1 --prompt-logprobs 3

The text is continued as it stands, without any chat template: `lathe chat` uses the template.")]
pub(crate) struct GenerateArgs {
    /// `demo`, Hugging Face folder, GGUF or PyTorch file, or hub id
    model: String,
    /// The text to continue; `-` reads it from stdin
    prompt: String,
    /// Say how likely the model found each token of its text, and the K likeliest in its place:
    /// natural logarithms, before temperature and the like
    #[arg(long, value_name = "K")]
    logprobs: Option<usize>,
    /// Say how likely the model found each token of the prompt, and the K likeliest in its place
    #[arg(long, value_name = "K")]
    prompt_logprobs: Option<usize>,
    /// Print times and speeds when done
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    structure: StructureArgs,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Serialize)]
struct Generated<'a> {
    model: &'a str,
    prompt: &'a str,
    prompt_ids: &'a [u32],
    #[serde(flatten)]
    answer: &'a Answer,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Vec<Likely>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<Likely>>,
    threads: usize,
    load_seconds: f64,
}

pub(crate) fn run(args: GenerateArgs, global: &Global) -> anyhow::Result<Ended> {
    let bar = ui::Bar::new(global.quiet);
    let grammar = args.structure.grammar()?;
    let prompt = read_prompt(&args.prompt)?;
    let loaded = Loaded::new(&args.model, &args.engine, &args.speculation, &bar)?;
    let ids = plain(&loaded.tokenizer, &prompt)?;
    if ids.is_empty() {
        bail!(
            "the prompt is empty, and this model has no token to begin a text with; give it some text"
        );
    }
    args.sampling.check(loaded.engine.info().vocab)?;
    let most = length(args.sampling.max_tokens, ids.len(), loaded.engine.info().context)?;
    let mut request = args.sampling.request(ids, most, &loaded.tokenizer);
    request.grammar = grammar;
    bar.clear();
    let shown = !global.json;
    if shown {
        ui::out(&prompt)?;
    }
    let mut show = |text: &str| if shown { ui::out(text) } else { Ok(()) };
    let submission = Submission {
        log_probs: args.logprobs.map(|top| LogProbsWanted { top, of: Distribution::Model }),
        prompt_log_probs: args.prompt_logprobs,
        ..request.clone().into()
    };
    let answer = loaded.answer(submission, &bar, &mut show).with_context(|| args.model.clone())?;
    let likely = |ids: &[u32], found: &[_]| likely::all(&loaded.tokenizer, ids, found);
    let prompt_logprobs = answer.of_prompt.as_ref().map(|found| likely(&request.prompt, found));
    let logprobs = answer.of_text.as_ref().map(|found| likely(&answer.ids, found));
    if global.json {
        let (prompt_ids, threads) = (&request.prompt[..], loaded.threads);
        let (model, load_seconds) = (&args.model, loaded.load.0);
        let (prompt, answer) = (&prompt, &answer);
        ui::json(&Generated {
            model,
            prompt,
            prompt_ids,
            answer,
            prompt_logprobs,
            logprobs,
            threads,
            load_seconds,
        })?;
    } else {
        if !answer.text.ends_with('\n') {
            ui::out("\n")?;
        }
        for (of, found) in [("prompt", prompt_logprobs), ("text", logprobs)] {
            found.map_or(Ok(()), |found| ui::out(&likely::text(of, &found)))?;
        }
    }
    structure::remark(request.grammar.as_ref(), answer.usage.finish, &bar);
    if args.stats && !global.json {
        eprintln!("{}", answer.stats(loaded.load));
    }
    bar.check()?;
    Ok(Ended::Well)
}

/// How many tokens may be generated: as many as asked for, else what fits up to the usual.
fn length(asked: Option<usize>, prompt: usize, context: usize) -> anyhow::Result<usize> {
    if prompt >= context {
        bail!(
            "the prompt has {prompt} tokens and the context holds {context}; shorten it or raise \
             --context"
        );
    }
    Ok(asked.unwrap_or(USUAL_LENGTH.min(context - prompt)))
}

fn read_prompt(prompt: &str) -> anyhow::Result<String> {
    if prompt != "-" {
        return Ok(prompt.to_owned());
    }
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        eprintln!("Reading the prompt; end it with Ctrl-D.");
    }
    let mut text = String::new();
    stdin.read_to_string(&mut text).context("the prompt on stdin cannot be read as UTF-8 text")?;
    Ok(text)
}
