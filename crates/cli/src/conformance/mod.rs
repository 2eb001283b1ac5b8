//! Whether engines compute on a model's files what Lathe's own does computing exactly: asked before
//! their speeds are compared.

mod checks;
mod reference;

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use lathe_api::Engine;
use lathe_base::{Progress, Silent};
use lathe_files::Checkpoint;
use lathe_models::Model;
use lathe_optimize::EngineOrder;
use lathe_report::Conformance;
use lathe_tokens::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::{open, peers::PeerOrder};
pub(crate) use checks::ALL;
pub(crate) use reference::{Noise, Reference};

/// Tokens written after each prompt unless the user says otherwise.
pub(crate) const TOKENS: usize = 32;

/// The most positions that a check takes.
pub(crate) fn room(tokens: usize) -> usize {
    reference::LONGEST + tokens + 2
}

/// The files that engines are asked about.
pub(crate) struct Subject {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) model: Model,
    tokenizer: Arc<Tokenizer>,
    pub(crate) vocab: usize,
    /// How Lathe's own engine is loaded; its context has room for every probe and what is written
    /// after it.
    pub(crate) order: EngineOrder,
    /// Tokens to write after each prompt.
    tokens: usize,
}

impl Subject {
    /// **Errors**: there is no room for so many tokens in the model's or the order's context.
    pub(crate) fn open(
        checkpoint: Checkpoint,
        order: EngineOrder,
        tokens: usize,
    ) -> anyhow::Result<Self> {
        let model = Model::read(&checkpoint)?;
        let tokenizer = open::tokenizer(&checkpoint)?;
        let vocab = tokenizer.vocab_size().min(model.spec.vocab);
        let context = order.context.min(model.spec.context);
        if context < tokens + reference::SHORTEST {
            bail!("--tokens {tokens}: a context of {context} tokens has no room for them");
        }
        let order = EngineOrder { context, ..order };
        Ok(Self { checkpoint, model, tokenizer, vocab, order, tokens })
    }

    /// Starts an engine and asks it everything. An engine that breaks says so in its place.
    pub(crate) fn ask(
        &self,
        (name, engine): (&str, PeerOrder),
        (reference, noise): (&Reference, &Noise),
        progress: &dyn Progress,
    ) -> anyhow::Result<Conformance> {
        let mut found = Conformance { limit: noise.limit(), ..Conformance::default() };
        let engine = match engine.start() {
            Ok((engine, _)) => engine,
            Err(why) => return Ok(Conformance { failed: Some(format!("{why:#}")), ..found }),
        };
        let engine: &dyn Engine = &*engine;
        found.version = Some(engine.info().version.clone());
        for (number, (what, check)) in checks::ALL.into_iter().enumerate() {
            progress.check()?;
            progress.at(&format!("{name}: {what}"), number as u64, checks::ALL.len() as u64);
            match check(self, engine, reference, noise) {
                Ok(check) => found.checks.push(check),
                Err(why) if why.is::<lathe_api::Error>() => {
                    found.failed = Some(format!("{what}: {why:#}"));
                    break;
                }
                Err(why) => return Err(why),
            }
        }
        Ok(found)
    }
}

/// What a process of its own is to find out: an engine that crashes takes nothing with it but this.
#[derive(Serialize, Deserialize)]
pub(crate) struct Question {
    /// A path, or `demo`: what Lathe's own engine reads.
    pub(crate) files: PathBuf,
    pub(crate) order: EngineOrder,
    pub(crate) name: String,
    pub(crate) engine: PeerOrder,
}

impl Question {
    /// Finds it out.
    pub(crate) fn answer(self) -> anyhow::Result<Conformance> {
        let checkpoint = open::here(&self.files)?;
        // A model of a short context is asked for less.
        let context = self.order.context.min(Model::read(&checkpoint)?.spec.context);
        let tokens = TOKENS.min(context.saturating_sub(reference::SHORTEST));
        let subject = Subject::open(checkpoint, self.order, tokens)
            .with_context(|| self.files.display().to_string())?;
        let reference = Reference::new(&subject)?;
        let noise = reference.noise(&subject, &Silent)?;
        subject.ask((&self.name, self.engine), (&reference, &noise), &Silent)
    }
}
