//! Options of everything that calibrates, and the token sequences that they stand for.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use lathe_base::Progress;
use lathe_eval::{ReadOptions, Split, Texts};
use lathe_files::Checkpoint;
use lathe_models::Model;
use lathe_quantizers::{Calibration, Draw};
use lathe_tokens::{Template, Tokenizer};

use crate::{commands::optimize::at_least_one, open, texts};

/// What is calibrated with.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Calibration")]
pub(crate) struct CalibrationArgs {
    /// Texts to calibrate with: a text file, or JSONL with `text` or chat `messages`, which the
    /// model's template renders [default: built-in texts of many kinds]
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: Option<PathBuf>,
    /// Sequences to draw from the texts, their documents in turn [default: 128]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) samples: Option<usize>,
    /// Tokens of each sequence [default: 512, at most the model's context]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    pub(crate) length: Option<usize>,
    /// Decides which sequences are drawn
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub(crate) seed: u64,
}

impl CalibrationArgs {
    /// Whether any of it was asked for.
    pub(crate) fn given(&self) -> bool {
        self.calibration.is_some() || self.samples.is_some() || self.length.is_some()
    }

    /// Reads, renders, tokenizes and draws.
    pub(crate) fn draw(
        &self,
        checkpoint: &Checkpoint,
        model: &Model,
        progress: &dyn Progress,
    ) -> anyhow::Result<Calibration> {
        let usual = Draw::default();
        let draw = Draw {
            samples: self.samples.unwrap_or(usual.samples),
            length: self.length.unwrap_or(usual.length).min(model.spec.context),
            seed: self.seed,
        };
        let tokenizer = open::tokenizer(checkpoint)?;
        let template = Template::from_checkpoint(checkpoint, &tokenizer).ok();
        let texts = self.texts(template.as_ref())?;
        let documents = tokens(&texts, &tokenizer)?;
        let about = (texts.name.as_str(), texts.sha256.as_str());
        let calibration = Calibration::draw(&documents, &draw, about)?;
        progress.note(&words(&calibration, &draw));
        Ok(calibration)
    }

    fn texts(&self, template: Option<&Template>) -> anyhow::Result<Texts> {
        match &self.calibration {
            Some(path) => texts::texts(Some(path), Split::Auto, template).context("--calibration"),
            None => {
                let name = Path::new("the built-in calibration texts");
                let options = ReadOptions::default();
                Ok(Texts::from_jsonl(name, lathe_demo::calibration().as_bytes(), &options)?)
            }
        }
    }
}

/// Each document's tokens, begun as the model's texts begin.
fn tokens(texts: &Texts, tokenizer: &Tokenizer) -> anyhow::Result<Vec<Vec<u32>>> {
    texts::with_encoder(tokenizer, |encoder| {
        let document = |document: &lathe_eval::Document| {
            let ids = (encoder.encode)(&document.text)
                .map_err(|why| anyhow!("{} cannot be tokenized: {why}", texts.name))?;
            Ok(encoder.bos.into_iter().chain(ids).collect())
        };
        texts.documents.iter().map(document).collect()
    })
}

fn words(calibration: &Calibration, draw: &Draw) -> String {
    let about = &calibration.about;
    let short = match about.samples < draw.samples {
        true => format!(" ({} were asked for: the texts have no more)", draw.samples),
        false => String::new(),
    };
    format!(
        "calibrating with {} samples{short}, {} tokens of {} documents, from {}",
        about.samples, about.tokens, about.documents, about.name
    )
}
