use std::path::PathBuf;

use lathe_eval::{ChoiceSet, Convention, Plan, Split, Texts};
use lathe_optimize::{DataFacts, Settings};
use lathe_tokens::{Template, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::texts;

/// Where a run's model and texts came from, kept so that it can be resumed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Source {
    /// A path, or `demo`.
    pub(crate) model: PathBuf,
    /// The built-in stories where `None`.
    pub(crate) data: Option<PathBuf>,
    pub(crate) choices: Option<PathBuf>,
    /// What methods calibrate with; the built-in texts where `None`.
    pub(crate) calibration: Option<PathBuf>,
}

impl Source {
    pub(crate) fn to_value(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::to_value(self)?)
    }
}

/// What quality is measured on.
pub(crate) struct Data {
    pub(crate) texts: Texts,
    pub(crate) plan: Plan,
    pub(crate) choices: Option<ChoiceSet>,
    pub(crate) facts: DataFacts,
}

impl Data {
    /// Reads and tokenizes; keeps whole documents up to the run's `max_tokens`.
    pub(crate) fn read(
        source: &Source,
        demo: bool,
        tokenizer: &Tokenizer,
        template: Option<&Template>,
        settings: &Settings,
    ) -> anyhow::Result<Self> {
        let mut texts = texts::texts(source.data.as_deref(), Split::Auto, template)?;
        let plan = texts::with_encoder(tokenizer, |encoder| -> anyhow::Result<Plan> {
            texts::shorten(&mut texts, encoder, settings.max_tokens)?;
            Ok(Plan::new(Convention::Documents, &texts, encoder, settings.context)?)
        })?;
        let choices = texts::choices(source.choices.as_deref(), demo && source.data.is_none())?;
        let facts = DataFacts {
            name: texts.name.clone(),
            documents: texts.documents.len(),
            tokens: plan.scored(),
            sha256: texts.sha256.clone(),
            items: choices.as_ref().map_or(0, |set| set.items.len()),
            items_sha256: choices.as_ref().map(|set| set.sha256.clone()),
        };
        Ok(Self { texts, plan, choices, facts })
    }
}
