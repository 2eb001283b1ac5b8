use std::io::{BufRead, IsTerminal};

use anyhow::{Context, bail};
use clap::Args;
use lathe_api::{Engine, Finish, Grammar};
use lathe_base::Progress;
use lathe_tokens::{Message, Render, Template};
use rustyline::{DefaultEditor, error::ReadlineError};
use serde::Serialize;

use crate::{
    args::Global,
    commands::{
        answer::Answer,
        options::{EngineArgs, Loaded, SamplingArgs, SpeculationArgs},
        prompt::{check_format, is_built_in},
        structure::{self, StructureArgs},
    },
    exit::Ended,
    ui,
};

const HELP: &str = "\
/reset   start a new conversation
/help    show this
/exit    leave (Ctrl-D does, too)
Ctrl-C   stop the answer";

/// Options of `lathe chat`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe chat demo
  lathe chat ./Qwen2.5-1.5B-Instruct --system \"Answer in one sentence.\" --temperature 0.7
  lathe chat model.gguf -m \"Why is the sky blue?\" --json
  lathe chat ./llama-2-7b --prompt-format llama2
  lathe chat model.gguf --draft small.gguf --stats
  lathe chat model.gguf -m \"Is the sky blue?\" --choice yes --choice no
  lathe chat model.gguf -m \"Describe Paris\" --json-schema city.json
  cat questions.txt | lathe chat model.gguf      one question a line, one conversation

The model's own chat template is used; a model without one needs --prompt-format.")]
pub(crate) struct ChatArgs {
    /// `demo`, Hugging Face folder, GGUF or PyTorch file, or hub id
    model: String,
    /// Say this, print the answer, and leave
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// What the model is told before all else
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Built-in format for a model without a template: llama2, mistral, chatml, vicuna, alpaca,
    /// tinyllama, gemma
    #[arg(long, value_name = "NAME")]
    prompt_format: Option<String>,
    /// Print times and speeds after each answer
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

pub(crate) fn run(args: ChatArgs, global: &Global) -> anyhow::Result<Ended> {
    let bar = ui::Bar::new(global.quiet);
    check_format(args.prompt_format.as_deref())?;
    let grammar = args.structure.grammar()?;
    let loaded = Loaded::new(&args.model, &args.engine, &args.speculation, &bar)?;
    let template = loaded.template(args.prompt_format.as_deref())?;
    args.sampling.check(loaded.engine.info().vocab)?;
    if let Some(name) = args.prompt_format.as_deref().filter(|n| !is_built_in(&template, n)) {
        bar.note(&format!("The model's own template is used, not --prompt-format {name}."));
    }
    bar.clear();
    let mut chat = Chat::new(&args, &loaded, &template, &bar, global.json);
    chat.grammar = grammar;
    match &args.message {
        Some(message) => chat.turn(message)?,
        None if std::io::stdin().is_terminal() => interactive(&mut chat)?,
        None => lines(&mut chat)?,
    }
    bar.check()?;
    Ok(Ended::Well)
}

/// Reads from a person, with line editing and history.
fn interactive(chat: &mut Chat<'_>) -> anyhow::Result<()> {
    let mut editor = DefaultEditor::new().context("cannot read from this terminal")?;
    ui::out(&ui::dim(&format!("{} · /help for commands\n", chat.args.model)))?;
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            // Ctrl-C on an empty prompt: nothing runs that could be stopped.
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error).context("cannot read from this terminal"),
        };
        let _ = editor.add_history_entry(line.as_str());
        match said(&line) {
            Said::Nothing => {}
            Said::Exit => return Ok(()),
            Said::Reset => chat.reset(),
            Said::Help => ui::out(&format!("{HELP}\n"))?,
            Said::Unknown => ui::out(&format!("There is no command {}.\n{HELP}\n", line.trim()))?,
            Said::Message(text) => {
                if let Err(error) = chat.turn(text) {
                    ui::out(&format!("{}\n", ui::red(&format!("{error:#}"))))?;
                }
                chat.bar.forgive();
            }
        }
    }
}

/// Reads messages from a pipe, one a line.
fn lines(chat: &mut Chat<'_>) -> anyhow::Result<()> {
    for line in std::io::stdin().lock().lines() {
        let line = line.context("the messages on stdin cannot be read as UTF-8 text")?;
        match said(&line) {
            Said::Nothing | Said::Help => {}
            Said::Exit => return Ok(()),
            Said::Reset => chat.reset(),
            // A line of a file that begins with a slash is text.
            Said::Unknown => chat.turn(line.trim())?,
            Said::Message(text) => chat.turn(text)?,
        }
        chat.bar.check()?;
    }
    Ok(())
}

/// What a line means.
#[derive(Debug, PartialEq)]
enum Said<'a> {
    Nothing,
    Exit,
    Reset,
    Help,
    Unknown,
    Message(&'a str),
}

fn said(line: &str) -> Said<'_> {
    let line = line.trim();
    match line {
        "" => Said::Nothing,
        "/exit" | "/quit" | "/bye" => Said::Exit,
        "/reset" => Said::Reset,
        "/help" => Said::Help,
        other if other.starts_with('/') && !other.contains(' ') => Said::Unknown,
        text => Said::Message(text),
    }
}

/// A conversation under way.
struct Chat<'a> {
    args: &'a ChatArgs,
    loaded: &'a Loaded,
    template: &'a Template,
    bar: &'a ui::Bar,
    json: bool,
    messages: Vec<Message>,
    /// What every answer must be.
    grammar: Option<Grammar>,
    /// Tokens at which the template ends a turn, beside those that the model names.
    turn_ends: Vec<u32>,
    turns: u64,
}

#[derive(Serialize)]
struct Turn<'a> {
    model: &'a str,
    template: &'a str,
    message: &'a str,
    #[serde(flatten)]
    answer: &'a Answer,
}

impl<'a> Chat<'a> {
    fn new(
        args: &'a ChatArgs,
        loaded: &'a Loaded,
        template: &'a Template,
        bar: &'a ui::Bar,
        json: bool,
    ) -> Self {
        let turn_ends = turn_end(loaded, template).into_iter().collect();
        let (messages, grammar) = (Vec::new(), None);
        let mut chat =
            Self { args, loaded, template, bar, json, messages, grammar, turn_ends, turns: 0 };
        chat.reset();
        chat
    }

    fn reset(&mut self) {
        self.messages = self.args.system.iter().map(Message::system).collect();
    }

    /// Says `text` and prints the answer as it comes. A turn that fails is forgotten.
    fn turn(&mut self, text: &str) -> anyhow::Result<()> {
        self.messages.push(Message::user(text));
        let answer = self.answer();
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.messages.pop();
                return Err(error);
            }
        };
        if self.json {
            let (model, template) = (self.args.model.as_str(), self.template.origin());
            let turn = Turn { model, template, message: text, answer: &answer };
            ui::out(&(serde_json::to_string(&turn)? + "\n"))?;
        } else {
            if !answer.text.ends_with('\n') {
                ui::out("\n")?;
            }
            self.remarks(&answer);
        }
        structure::remark(self.grammar.as_ref(), answer.usage.finish, self.bar);
        self.messages.push(Message::assistant(answer.text.trim()));
        self.turns += 1;
        Ok(())
    }

    fn answer(&self) -> anyhow::Result<Answer> {
        let tokenizer = &self.loaded.tokenizer;
        let prompt = self.template.prompt(&self.messages, &Render::reply())?;
        let ids = tokenizer.encode_prompt(&prompt)?;
        let context = self.loaded.engine.info().context;
        if ids.len() >= context {
            bail!(
                "the conversation has {} tokens and the context holds {context}; start anew \
                 (/reset) or run with a larger --context",
                ids.len()
            );
        }
        let room = context - ids.len();
        let most = self.args.sampling.max_tokens.unwrap_or(room).min(room);
        let mut request = self.args.sampling.request(ids, most, tokenizer);
        request.grammar.clone_from(&self.grammar);
        request.stop_tokens.extend(&self.turn_ends);
        request.stop_strings.extend(self.template.stop_strings().iter().cloned());
        // Asked twice, a person hopes for another answer.
        request.sampling.seed = request.sampling.seed.wrapping_add(self.turns);
        let shown = !self.json;
        let mut show = |text: &str| if shown { ui::out(text) } else { Ok(()) };
        self.loaded.answer(request.into(), self.bar, &mut show)
    }

    fn remarks(&self, answer: &Answer) {
        let Answer { usage, .. } = answer;
        let used = usage.prompt_tokens + usage.generated_tokens;
        let context = self.loaded.engine.info().context;
        if usage.finish == Finish::Length && used >= context {
            eprintln!(
                "The context of {context} tokens is full: start anew (/reset) or run with a larger \
                 --context."
            );
        }
        if self.args.stats {
            eprintln!("{}", answer.stats(self.loaded.load));
        }
    }
}

/// The special token that the template writes after an answer: many models' files name only the
/// token that ends a text.
fn turn_end(loaded: &Loaded, template: &Template) -> Option<u32> {
    const ANSWER: &str = "answer-ends-here";
    let messages = [Message::user("Hello"), Message::assistant(ANSWER)];
    let text = template.render(&messages, &Render::default()).ok()?;
    let after = &text[text.rfind(ANSWER)? + ANSWER.len()..];
    let first = *loaded.tokenizer.encode(after.trim_start(), false).ok()?.first()?;
    loaded.tokenizer.is_special(first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_messages() {
        assert_eq!(said("  "), Said::Nothing);
        assert_eq!(said("/exit "), Said::Exit);
        assert_eq!(said("/reset"), Said::Reset);
        assert_eq!(said("/rest"), Said::Unknown);
        assert_eq!(said("/tmp is full"), Said::Message("/tmp is full"));
        assert_eq!(said(" Hello "), Said::Message("Hello"));
    }
}
