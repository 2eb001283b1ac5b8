mod measure;
mod show;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use lathe_base::AtomicFile;
use lathe_eval::{ChoiceFigures, Convention, PassFigures, QualityRaw, Rule, Split};
use lathe_stats::Bootstrap;
use serde::Serialize;

pub(crate) use measure::measure;

use crate::{
    args::Global,
    cards,
    commands::{optimize::level, options::EngineArgs},
    exit::Ended,
    ui,
};

/// Options of `lathe eval`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe eval demo
  lathe eval qwen-q4_0.gguf --base ./Qwen2.5-1.5B --data my-texts.jsonl
  lathe eval ./Qwen2.5-1.5B-nf4 --base ./Qwen2.5-1.5B --card
  lathe eval ./Qwen2.5-1.5B --data wiki.test.raw --max-tokens all --conventions windows,llama.cpp
  lathe eval model.gguf --choices questions.jsonl --save quality.json

Perplexities in different conventions cannot be compared: each is printed with its label. With
--base, the divergence is of what the model predicts from what the base predicts (computed in
f32), and the noise floor is what rounding the base to bf16 does.")]
pub(crate) struct EvalArgs {
    /// `demo`, Hugging Face folder, GGUF or PyTorch file, or hub id
    pub(crate) model: String,
    /// The model that it was made of: measures KL divergence, agreement and flips against it
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<String>,
    /// Text: a file, or JSONL with `text` or `messages` [default: sixty short stories]
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// Multiple-choice items, JSONL with `context`, `choices`, `answer`
    /// [default: 300 items for the demo model, none for others]
    #[arg(long, value_name = "FILE")]
    pub(crate) choices: Option<PathBuf>,
    /// No multiple choice
    #[arg(long, conflicts_with = "choices")]
    pub(crate) no_choices: bool,
    /// How the text is cut: all, or some of documents, windows, llama.cpp, sliding
    #[arg(long, value_name = "LIST", default_value = "all", value_delimiter = ',', value_parser = ["all", "documents", "windows", "llama.cpp", "sliding"])]
    pub(crate) conventions: Vec<String>,
    /// Whole documents up to so many tokens, or `all`
    #[arg(long, value_name = "N", default_value = "32768", value_parser = most)]
    pub(crate) max_tokens: usize,
    /// Where a document of a text file ends: auto, whole, end-of-text, blank-lines, headings, or
    /// prefix:WORDS for lines that begin one
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = split)]
    pub(crate) split: Split,
    /// Two-sided confidence of the intervals
    #[arg(long, value_name = "LEVEL", default_value = "0.95", value_parser = level)]
    pub(crate) level: f64,
    /// Seed of the resampling
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) seed: u64,
    /// Compute the model with f32 activations, not as it is deployed
    #[arg(long)]
    pub(crate) exact: bool,
    /// Keep the sums of every document, from which all figures can be computed again
    #[arg(long, value_name = "FILE")]
    pub(crate) save: Option<PathBuf>,
    /// Write the figures into the model card (README.md) of the folder that was made by quantize
    #[arg(long)]
    pub(crate) card: bool,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// What came out.
#[derive(Serialize)]
struct Evaluation {
    model: String,
    base: Option<String>,
    data: DataFacts,
    passes: Vec<PassFigures>,
    choices: Vec<ChoiceFigures>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct DataFacts {
    name: String,
    sha256: String,
    documents: usize,
    tokens: u64,
}

pub(crate) fn run(args: EvalArgs, global: &Global) -> anyhow::Result<Ended> {
    let bar = ui::Bar::new(global.quiet);
    let (raw, notes) = measure(&args, &bar)?;
    bar.clear();
    if let Some(path) = &args.save {
        AtomicFile::write_all(path, &serde_json::to_vec(&raw)?)
            .with_context(|| format!("--save: cannot write {}", path.display()))?;
    }
    let evaluation = args.figures(&raw, notes)?;
    if args.card {
        let on = format!("{}, {} documents", evaluation.data.name, evaluation.data.documents);
        cards::of_evaluation(Path::new(&args.model), &on, &evaluation.passes)?;
    }
    if global.json {
        ui::json(&evaluation)?;
    } else {
        ui::out(&show::text(&evaluation))?;
    }
    Ok(Ended::Well)
}

impl EvalArgs {
    fn figures(&self, raw: &QualityRaw, notes: Vec<String>) -> anyhow::Result<Evaluation> {
        let bootstrap = Bootstrap { level: self.level, seed: self.seed, ..Bootstrap::default() };
        let passes = raw.passes.iter().map(|pass| PassFigures::new(pass, &bootstrap));
        let rules = [Rule::Sum, Rule::PerByte];
        let choices = raw
            .choices
            .iter()
            .flat_map(|set| rules.map(|rule| ChoiceFigures::new(set, rule, self.level)));
        Ok(Evaluation {
            model: self.model.clone(),
            base: self.base.clone(),
            data: DataFacts {
                name: raw.data.name.clone(),
                sha256: raw.data.sha256.clone(),
                documents: raw.data.documents.len(),
                tokens: raw.data.documents.iter().map(|d| d.tokens).sum(),
            },
            passes: passes.collect::<Result<_, _>>()?,
            choices: choices.collect::<Result<_, _>>()?,
            notes,
        })
    }

    /// The conventions asked for, in windows that fit the context.
    fn conventions(&self, context: usize) -> Vec<Convention> {
        let wanted = |convention: &Convention| {
            let name = match convention {
                Convention::Documents => "documents",
                Convention::Windows { .. } => "windows",
                Convention::LlamaCpp { .. } => "llama.cpp",
                Convention::Sliding { .. } => "sliding",
            };
            self.conventions.iter().any(|asked| asked == "all" || asked == name)
        };
        Convention::all(context).into_iter().filter(wanted).collect()
    }
}

fn most(text: &str) -> Result<usize, String> {
    if text == "all" {
        return Ok(usize::MAX);
    }
    crate::commands::optimize::at_least_one(text)
        .map_err(|_| "a whole number of at least 1, or `all`, is needed".to_owned())
}

fn split(text: &str) -> Result<Split, String> {
    match (text, text.strip_prefix("prefix:")) {
        ("auto", _) => Ok(Split::Auto),
        ("whole", _) => Ok(Split::Whole),
        ("end-of-text", _) => Ok(Split::EndOfText),
        ("blank-lines", _) => Ok(Split::BlankLines),
        ("headings", _) => Ok(Split::Headings),
        (_, Some(words)) if !words.is_empty() => Ok(Split::Prefix(words.to_owned())),
        _ => {
            Err("auto, whole, end-of-text, blank-lines, headings or prefix:WORDS is needed"
                .to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_read_by_name() {
        assert_eq!(split("headings"), Ok(Split::Headings));
        assert_eq!(split("prefix:Chapter"), Ok(Split::Prefix("Chapter".to_owned())));
        assert!(split("prefix:").is_err() && split("lines").is_err());
        assert_eq!(most("all"), Ok(usize::MAX));
        assert!(most("0").is_err());
    }
}
