//! An engine on a sample: does it write a few tokens?

use std::{env, fs, path::Path, time::Duration};

use anyhow::Context;
use lathe_base::{Bytes, Progress, Seconds, Silent};
use lathe_bench::{Error, Launcher, Limits, Order, Text, Workload};
use lathe_machine::Monitor;
use lathe_optimize::{EngineOrder, Guesses, MemoryUse, Precision};
use serde::{Deserialize, Serialize};

use super::samples::{Sample, Source};
use crate::{
    commands::system::default_threads,
    graphs,
    peers::{Peer, Served},
};

/// Tokens that are asked for.
const TOKENS: usize = 4;
/// Tokens of the prompt.
const PROMPT: usize = 8;
const CONTEXT: usize = 64;
/// As much of a reason as is kept.
const SAID: usize = 300;
/// What adapters say of an engine that they gave up waiting for.
const LATE: [&str; 2] = ["it said nothing for ", "not ready after "];

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// It wrote what it was asked for.
    Runs {
        /// What it computed on, as it says itself.
        device: String,
    },
    /// It did not, and the first line of why.
    Refuses { why: String },
    /// It did not in the time that it was given, which may be the machine's fault: it is asked again
    /// the next time.
    Late { why: String },
}

impl Outcome {
    pub(super) fn runs(&self) -> bool {
        matches!(self, Self::Runs { .. })
    }

    /// Why it does not.
    pub(super) fn why(&self) -> Option<&str> {
        match self {
            Self::Runs { .. } => None,
            Self::Refuses { why } | Self::Late { why } => Some(why),
        }
    }

    /// Whether that is known for good.
    pub(super) fn settled(&self) -> bool {
        !matches!(self, Self::Late { .. })
    }
}

/// Starts engines, each time in a process of its own.
pub(super) struct Bench<'a> {
    source: &'a Source,
    launcher: Launcher,
    monitor: Monitor,
    patience: Seconds,
}

impl<'a> Bench<'a> {
    /// `patience` is what an engine may take to start, and to answer.
    pub(super) fn new(source: &'a Source, patience: Seconds) -> anyhow::Result<Self> {
        let launcher = Launcher {
            program: env::current_exe().context("cannot find the lathe program itself")?,
            arguments: vec!["trial".to_owned()],
            // Longer than its parts: what is late should say so itself.
            timeout: Duration::from_secs_f64(patience.0.clamp(1.0, 1e6) * 2.0 + 10.0),
            limits: Limits::default(),
        };
        Ok(Self { source, launcher, monitor: Monitor::start(), patience })
    }

    /// Has a peer run a sample.
    ///
    /// **Errors**: an interruption, or files that cannot be written; what the engine does wrong is
    /// an [`Outcome`].
    pub(super) fn peer(
        &self,
        peer: &Peer,
        sample: &Sample,
        progress: &dyn Progress,
    ) -> anyhow::Result<Outcome> {
        let graph = sample.path.with_extension("graph");
        let model = match peer.graph() {
            // Beside the sample, so that nothing stays in the user's cache.
            Some(options) => {
                let options = options?;
                let to = (graph.as_path(), true);
                if let Err(why) =
                    graphs::write(&sample.checkpoint, &sample.model, options, to, &Silent)
                {
                    return Ok(refuses(&format!("{why:#}")));
                }
                &graph
            }
            None => &sample.path,
        };
        let outcome = match self.order(peer, model, progress) {
            Ok(engine) => self.run(engine, progress),
            Err(why) => Ok(refuses(&format!("{why:#}"))),
        };
        // Where it lies says nothing.
        let outcome = outcome.map(|outcome| match outcome {
            Outcome::Refuses { why } => {
                Outcome::Refuses { why: why.replace(&*model.to_string_lossy(), "MODEL") }
            }
            other => other,
        });
        if graph.is_dir() {
            fs::remove_dir_all(&graph)
                .with_context(|| format!("cannot remove {}", graph.display()))?;
        }
        outcome
    }

    /// Has Lathe's own engine run a sample.
    pub(super) fn native(
        &self,
        sample: &Sample,
        progress: &dyn Progress,
    ) -> anyhow::Result<Outcome> {
        let engine = EngineOrder {
            model: sample.path.clone(),
            engine: "native".to_owned(),
            threads: default_threads(),
            context: CONTEXT,
            batch: 1,
            kv: "f16".to_owned(),
            precision: Precision::Fast,
            memory: MemoryUse::default(),
            guesses: Guesses::Off,
        };
        self.run(serde_json::to_value(engine)?, progress)
    }

    fn order(
        &self,
        peer: &Peer,
        model: &Path,
        progress: &dyn Progress,
    ) -> anyhow::Result<serde_json::Value> {
        let order = peer.order(
            &Served {
                model,
                threads: default_threads(),
                context: CONTEXT,
                streams: 1,
                kv: "f16",
                kv_bytes: Bytes(1 << 28).0,
                vocab: self.source.vocab,
                avoid: &[],
                patience: self.patience,
            },
            progress,
        )?;
        Ok(serde_json::to_value(order)?)
    }

    fn run(&self, engine: serde_json::Value, progress: &dyn Progress) -> anyhow::Result<Outcome> {
        let workload = Workload {
            prompt_tokens: PROMPT,
            new_tokens: TOKENS,
            requests: 1,
            at_least: Seconds(0.0),
            warmup: 0,
            streams: Vec::new(),
            seed: 0,
            vocab: None,
            text: Some(Text { name: "story".to_owned(), ids: self.source.text.clone() }),
        };
        match self.launcher.run(&Order { engine, workload }, &self.monitor, progress) {
            Ok(trial) => Ok(Outcome::Runs { device: trial.info.device }),
            Err(Error::Cancelled(stop)) => Err(stop.into()),
            Err(late @ Error::TimedOut { .. }) => Ok(Outcome::Late { why: late.to_string() }),
            Err(why) => Ok(refuses(&why.to_string())),
        }
    }
}

/// The first line, or as much of it as people read.
fn refuses(why: &str) -> Outcome {
    let line = why.lines().find(|line| !line.trim().is_empty()).unwrap_or("it gives no reason");
    let mut line: String = line.trim().to_owned();
    if line.chars().count() > SAID {
        line = line.chars().take(SAID).collect::<String>() + " …";
    }
    match LATE.iter().any(|words| line.contains(words)) {
        true => Outcome::Late { why: line },
        false => Outcome::Refuses { why: line },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line() {
        let why = |text: &str| match refuses(text) {
            Outcome::Refuses { why } => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(why("\n  no kernel \nTraceback"), "no kernel");
        assert_eq!(why(""), "it gives no reason");
        assert_eq!(why(&"é".repeat(400)).chars().count(), SAID + 2);
    }

    #[test]
    fn an_engine_that_was_waited_for_in_vain_has_not_refused() {
        for text in
            ["vllm failed: not ready after 300 s; it last said: x", "it said nothing for 5 s"]
        {
            let outcome = refuses(text);
            assert!(!outcome.settled() && !outcome.runs() && outcome.why() == Some(text));
        }
        assert!(refuses("no kernel").settled());
    }
}
