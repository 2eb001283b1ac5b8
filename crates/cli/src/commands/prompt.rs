use std::{fs, path::PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use lathe_tokens::{FORMATS, Message, Prompt, Render, Shown, Template, Tokenizer};
use serde::Serialize;

use crate::{args::Global, exit::Ended, open, ui};

/// Options of `lathe prompt`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe prompt demo \"Tell me a story about a fox.\"
  lathe prompt ./Qwen2.5-1.5B-Instruct \"Hello\" --system \"Answer in French.\"
  lathe prompt model.gguf --messages conversation.json --json
  lathe prompt ./llama-2-7b \"Hello\" --prompt-format llama2
  lathe prompt ./llama-2-7b \"Once upon a time\" --raw

Special tokens are shown as [<token>]. A messages file holds a JSON list of
{\"role\": …, \"content\": …}.")]
pub(crate) struct PromptArgs {
    /// `demo`, Hugging Face folder, GGUF or PyTorch file, or hub id
    model: String,
    /// What the user says
    #[arg(required_unless_present = "messages", conflicts_with = "messages")]
    text: Option<String>,
    /// What the model is told before all else
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["messages", "raw"])]
    system: Option<String>,
    /// A conversation, as a JSON file
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    messages: Option<PathBuf>,
    /// Built-in format for a model without a template: llama2, mistral, chatml, vicuna, alpaca,
    /// tinyllama, gemma
    #[arg(long, value_name = "NAME", conflicts_with = "raw")]
    prompt_format: Option<String>,
    /// No template: the text as it stands, as `lathe generate` continues it
    #[arg(long)]
    raw: bool,
}

/// A prompt as the model sees it.
#[derive(Serialize)]
struct Seen {
    model: String,
    /// Whose template; none for a raw text.
    template: Option<String>,
    text: String,
    ids: Vec<u32>,
    tokens: Vec<Shown>,
    /// What ends an answer.
    stop_tokens: Vec<u32>,
    stop_strings: Vec<String>,
}

pub(crate) fn run(args: PromptArgs, global: &Global) -> anyhow::Result<Ended> {
    let bar = ui::Bar::new(global.quiet);
    let checkpoint = open::checkpoint(&args.model, &bar)?;
    let tokenizer = open::tokenizer(&checkpoint)?;
    let (prompt, template) = if args.raw {
        (Prompt::plain(args.text.clone().unwrap_or_default()), None)
    } else {
        let wanted = args.prompt_format.as_deref();
        check_format(wanted)?;
        let template = Template::choose(&checkpoint, &tokenizer, wanted)?;
        let prompt = template.prompt(&args.conversation()?, &Render::reply())?;
        if let Some(name) = wanted.filter(|name| !is_built_in(&template, name)) {
            eprintln!("The model's own template is used, not --prompt-format {name}.");
        }
        (prompt, Some(template))
    };
    let seen = seen(&args.model, prompt, template, &tokenizer)?;
    if global.json {
        ui::json(&seen)?;
    } else {
        show(&seen, &tokenizer)?;
    }
    Ok(Ended::Well)
}

/// Refuses an unknown name even where the model's own template wins.
pub(crate) fn check_format(name: Option<&str>) -> anyhow::Result<()> {
    match name {
        Some(name) if FORMATS.iter().all(|format| format.name != name) => {
            let known: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
            bail!("--prompt-format: there is no format `{name}`; choose from {}", known.join(", "))
        }
        _ => Ok(()),
    }
}

/// Whether the template is the built-in one of this name.
pub(crate) fn is_built_in(template: &Template, name: &str) -> bool {
    template.origin() == format!("the built-in format {name}")
}

impl PromptArgs {
    fn conversation(&self) -> anyhow::Result<Vec<Message>> {
        if let Some(path) = &self.messages {
            let bytes = fs::read(path)
                .with_context(|| format!("--messages: cannot read {}", path.display()))?;
            return serde_json::from_slice(&bytes).with_context(|| {
                format!(
                    "--messages: {} is not a JSON list of objects with `role` and `content`",
                    path.display()
                )
            });
        }
        let system = self.system.iter().map(Message::system);
        Ok(system.chain(self.text.iter().map(Message::user)).collect())
    }
}

fn seen(
    model: &str,
    prompt: Prompt,
    template: Option<Template>,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Seen> {
    let ids = tokenizer.encode_prompt(&prompt)?;
    Ok(Seen {
        model: model.to_owned(),
        text: prompt.text,
        tokens: tokenizer.describe(&ids),
        ids,
        stop_tokens: tokenizer.stop_tokens().to_vec(),
        stop_strings: template.as_ref().map_or_else(Vec::new, |t| t.stop_strings().to_vec()),
        template: template.map(|t| t.origin().to_owned()),
    })
}

fn show(seen: &Seen, tokenizer: &Tokenizer) -> anyhow::Result<()> {
    let origin = seen.template.as_deref().unwrap_or("none: the text as it stands");
    let marked = marked(&seen.tokens, tokenizer);
    let ends: Vec<String> = seen
        .stop_tokens
        .iter()
        .map(u32::to_string)
        .chain(seen.stop_strings.iter().map(|s| format!("{s:?}")))
        .collect();
    let mut facts = vec![("Template".to_owned(), origin.to_owned())];
    facts.push(("Tokens".to_owned(), seen.ids.len().to_string()));
    if !ends.is_empty() {
        facts.push(("Ends at".to_owned(), ends.join(", ")));
    }
    ui::out(&format!("{}\n{}\n\n{}", ui::facts(&facts), marked.trim_end_matches('\n'), rows(seen)))
}

/// The text with its special tokens in brackets and colour.
fn marked(tokens: &[Shown], tokenizer: &Tokenizer) -> String {
    let mut text = String::new();
    let mut stream = tokenizer.stream_on(true);
    for token in tokens {
        if token.special {
            text += &stream.finish();
            text += &mark(token);
        } else {
            text += &stream.push(token.id);
        }
    }
    text + &stream.finish()
}

fn mark(token: &Shown) -> String {
    ui::yellow(&format!("[{}]", token.text))
}

fn rows(seen: &Seen) -> String {
    let rows: Vec<Vec<String>> = seen
        .tokens
        .iter()
        .map(|token| {
            let text = if token.special { mark(token) } else { format!("{:?}", token.text) };
            vec![token.id.to_string(), text]
        })
        .collect();
    ui::table(&[">id", "token"], &rows)
}
