//! Trials in fresh processes, round by round.

use std::{fs, io::Read, path::Path, thread::sleep, time::Duration};

use anyhow::{Context, bail};
use lathe_base::{Bytes, Progress};
use lathe_bench::{Launcher, Limits, Next, Order, Round, Text, Workload, figures, ratio, rounds};
use lathe_files::{Checkpoint, Folder};
use lathe_machine::{Machine, Memory, Monitor, Noise};
use lathe_models::Model;
use lathe_optimize::{EngineOrder, Guesses, NATIVE};
use lathe_tokens::Tokenizer;

use super::{
    Advantage, Bench, Measured, Refused, Timing,
    against::measures,
    roofs::{Demand, Roofs},
};
use crate::{
    loading, open,
    peers::{Peer, Served, avoided},
};

/// The machine is watched for so long before and after the trials.
const MARGIN: Duration = Duration::from_millis(400);

/// What is to be measured.
pub(crate) struct Asked<'a> {
    pub(crate) models: &'a [String],
    pub(crate) against: &'a [Peer],
    /// Each model is measured with these guesses too, behind the same without.
    pub(crate) guesses: Guesses,
    /// Where prompts are from.
    pub(crate) text: Option<&'a Path>,
    pub(crate) timing: &'a Timing,
    pub(crate) streams: &'a [usize],
}

/// Measures models in turn, each on Lathe's own engine and then on others; the first is the
/// baseline.
pub(crate) fn measure(asked: &Asked<'_>, progress: &dyn Progress) -> anyhow::Result<Bench> {
    let Asked { models, against, guesses, timing, streams, .. } = asked;
    let mut workload = timing.workload(streams);
    let mut found = Vec::new();
    for (index, typed) in models.iter().enumerate() {
        let before = models[..index].iter().filter(|other| *other == typed).count();
        found.push(Subject::open(typed, before, asked, &workload, progress)?);
    }
    workload.text = found.first().and_then(|subject| subject.text.clone());
    if !against.is_empty() {
        // The same ids for every engine, and ids that every engine knows.
        workload.vocab = found.iter().map(|subject| subject.vocab).min();
    }
    let (mut candidates, mut refused) = (Vec::new(), Vec::new());
    for (index, subject) in found.iter().enumerate() {
        let order = subject.native(timing, &workload)?;
        let name = match against {
            [] => subject.name.clone(),
            _ => format!("{} on {NATIVE}", subject.name),
        };
        let engine = NATIVE.to_owned();
        let guessing = guesses_name(guesses).map(|how| format!("{name}, {how}"));
        candidates.push(Entry { name, engine: engine.clone(), subject: index, order });
        if let Some(name) = guessing {
            let order = subject.guessing(guesses, timing, &workload)?;
            candidates.push(Entry { name, engine, subject: index, order });
        }
        for peer in *against {
            match subject.on(peer, timing, &workload, progress) {
                Ok(order) => {
                    let (name, engine) =
                        (format!("{} on {}", subject.name, peer.name), peer.name.clone());
                    candidates.push(Entry { name, engine, subject: index, order });
                }
                Err(why) => refused.push(Refused {
                    model: subject.name.clone(),
                    engine: peer.name.clone(),
                    reason: format!("{why:#}"),
                }),
            }
        }
    }
    let launcher = Launcher {
        program: std::env::current_exe().context("cannot find the lathe program itself")?,
        arguments: vec!["trial".to_owned()],
        timeout: Duration::from_secs_f64(timing.trial_timeout.0.clamp(1.0, 1e6)),
        limits: limits(timing.engine.threads()),
    };
    let orders: Vec<(String, Order)> =
        candidates.iter().map(|c| (c.name.clone(), c.order.clone())).collect();
    let machine = Machine::analyse(None);
    let mut roofs = Roofs::new(!against.is_empty(), timing.engine.threads());
    roofs.measure(progress);
    let monitor = Monitor::start();
    sleep(MARGIN);
    let mut done = Vec::new();
    let mut keep = |round: Round| {
        done.push(round);
        roofs.measure(progress);
        anyhow::Ok(Next::Again)
    };
    rounds(&launcher, &orders, 0..timing.rounds, &[], &monitor, progress, &mut keep)?;
    sleep(MARGIN);
    let timeline = monitor.stop();
    let advantages = advantages(&candidates, &done, &workload, timing.level);
    let measured = |entry: &Entry| {
        let figures = figures(&done, &entry.name, timing.level);
        let first = &candidates[0].name;
        let subject = &found[entry.subject];
        Measured {
            name: entry.name.clone(),
            model: subject.name.clone(),
            engine: entry.engine.clone(),
            size: subject.size,
            shares: roofs.shares(&subject.demand, &workload, &machine, &figures),
            figures,
            ratio: (entry.name != *first)
                .then(|| ratio(&done, &entry.name, first, timing.level))
                .flatten(),
            order: shown(&entry.order),
            version: version(&done, &entry.name),
        }
    };
    Ok(Bench {
        models: candidates.iter().map(measured).collect(),
        advantages,
        refused,
        roofs: roofs.measured(),
        workload,
        threads: timing.engine.threads(),
        level: timing.level,
        warnings: warnings(&done),
        machine,
        rounds: done,
        timeline,
    })
}

/// What every engine may use, whatever it would take by itself: as many processors as it has
/// threads, and memory as long as the system still has some.
pub(crate) fn limits(threads: usize) -> Limits {
    // Beyond it the system ends processes as it likes, perhaps ours.
    const SHARE: f64 = 0.95;
    let memory = Bytes((Memory::read().capacity().0 as f64 * SHARE) as u64);
    Limits { cores: Some(threads), memory: (memory.0 > 0).then_some(memory) }
}

/// A model to measure.
struct Subject {
    name: String,
    checkpoint: Checkpoint,
    model: Model,
    size: Bytes,
    context: usize,
    /// Tokens that prompts may be drawn from.
    vocab: usize,
    /// As in `lathe_adapters::llamacpp::Options::avoid`.
    avoid: Vec<u32>,
    demand: Demand,
    text: Option<Text>,
}

/// A model on an engine.
struct Entry {
    name: String,
    engine: String,
    /// Its place among the subjects.
    subject: usize,
    order: Order,
}

impl Subject {
    /// `before` counts how often the same model was named already: that shows what the machine's
    /// noise alone does.
    fn open(
        typed: &str,
        before: usize,
        asked: &Asked<'_>,
        workload: &Workload,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        let timing = asked.timing;
        let checkpoint = open::checkpoint(typed, progress)?;
        let model = Model::read(&checkpoint).with_context(|| typed.to_owned())?;
        let context = context(timing, workload, &model).with_context(|| typed.to_owned())?;
        let name = if before == 0 { typed.to_owned() } else { format!("{typed} ({})", before + 1) };
        let tokenizer = open::tokenizer(&checkpoint).ok();
        let known = tokenizer.as_ref().map_or(model.spec.vocab, |t| t.vocab_size());
        let kv = open::kv(&timing.engine.kv)?;
        let text = asked.text.map(|path| {
            let tokenizer = open::tokenizer(&checkpoint)?;
            text(path, &tokenizer, workload)
        });
        Ok(Self {
            text: text.transpose()?,
            name,
            size: checkpoint.stored_bytes(),
            context,
            vocab: known.min(model.spec.vocab),
            avoid: tokenizer.map(|t| avoided(&t)).unwrap_or_default(),
            demand: Demand::of(&model, &checkpoint, workload, kv),
            checkpoint,
            model,
        })
    }

    fn streams(workload: &Workload) -> usize {
        workload.streams.iter().copied().max().unwrap_or(1)
    }

    fn native(&self, timing: &Timing, workload: &Workload) -> anyhow::Result<Order> {
        self.guessing(&Guesses::Off, timing, workload)
    }

    fn guessing(
        &self,
        guesses: &Guesses,
        timing: &Timing,
        workload: &Workload,
    ) -> anyhow::Result<Order> {
        let order = timing.engine.order(&self.checkpoint, self.context);
        let (batch, guesses) = (Self::streams(workload), guesses.clone());
        let engine = EngineOrder { batch, guesses, ..order };
        Ok(Order { engine: serde_json::to_value(engine)?, workload: self.workload(workload) })
    }

    /// The same in this model's tokens.
    fn workload(&self, workload: &Workload) -> Workload {
        Workload { text: self.text.clone(), ..workload.clone() }
    }

    /// **Errors**: the engine will not load these files, and why.
    fn on(
        &self,
        peer: &Peer,
        timing: &Timing,
        workload: &Workload,
        progress: &dyn Progress,
    ) -> anyhow::Result<Order> {
        if matches!(self.checkpoint.folder, Folder::Memory(_)) && peer.reads_files() {
            bail!(
                "the built-in model has no files; `lathe quantize demo --to q8_0 -o demo.gguf` \
                 makes one, `--to bf16 -o demo-bf16` a folder"
            );
        }
        if let Some(why) = peer.refuses(&loading::stored(&self.model, &self.checkpoint)) {
            bail!("{why}");
        }
        let streams = Self::streams(workload);
        let kv = open::kv(&timing.engine.kv)?;
        let engine = peer.order(
            &Served {
                model: &self.checkpoint.path,
                threads: timing.engine.threads(),
                context: self.context,
                streams,
                kv: &timing.engine.kv,
                kv_bytes: self.model.spec.cache_bytes(self.context, streams, kv).0,
                vocab: self.vocab,
                avoid: &self.avoid,
                patience: timing.trial_timeout,
            },
            progress,
        )?;
        Ok(Order { engine: serde_json::to_value(engine)?, workload: self.workload(workload) })
    }
}

/// What a candidate that guesses is called.
fn guesses_name(guesses: &Guesses) -> Option<String> {
    match guesses {
        Guesses::Off => None,
        Guesses::Lookup => Some("look-up".to_owned()),
        Guesses::Draft(model) => Some(format!("draft {}", model.display())),
    }
}

/// The beginning of a text, in a model's tokens.
fn text(path: &Path, tokenizer: &Tokenizer, workload: &Workload) -> anyhow::Result<Text> {
    /// Prompts that have room without overlapping: a record keeps all of the text.
    const PIECES: usize = 32;
    /// More bytes than a token has on average in any language.
    const BYTES: usize = 16;
    let name = path.display().to_string();
    let file = fs::File::open(path).with_context(|| format!("--text {name}: cannot be read"))?;
    let most = workload.prompt_tokens.saturating_mul(PIECES);
    let mut bytes = Vec::new();
    file.take(most.saturating_mul(BYTES) as u64)
        .read_to_end(&mut bytes)
        .with_context(|| format!("--text {name}: cannot be read"))?;
    let mut ids = tokenizer.encode_bytes(&bytes, false)?;
    if ids.len() < workload.prompt_tokens {
        let (found, wanted) = (ids.len(), workload.prompt_tokens);
        bail!("--text {name} has {found} tokens; --prompt-tokens asks for {wanted}");
    }
    ids.truncate(most);
    Ok(Text { name, ids })
}

/// The version that an engine told, in its first trial that came to its end.
fn version(rounds: &[Round], name: &str) -> Option<String> {
    let mut own = rounds.iter().filter(|round| round.candidate == name);
    own.find_map(|round| Some(round.outcome.as_ref().ok()?.info.version.clone()))
}

/// An engine's order without the list of tokens, which may be as long as the vocabulary.
fn shown(order: &Order) -> serde_json::Value {
    let mut engine = order.engine.clone();
    if let Some(avoid) = engine.get_mut("avoid") {
        *avoid = avoid.as_array().map_or(0, Vec::len).into();
    }
    engine
}

/// How many times as good Lathe's own engine is as each other, model by model.
fn advantages(
    entries: &[Entry],
    rounds: &[Round],
    workload: &Workload,
    level: f64,
) -> Vec<Advantage> {
    let mut list = Vec::new();
    for entry in entries.iter().filter(|entry| entry.engine != NATIVE) {
        let own = entries.iter().find(|e| e.subject == entry.subject && e.engine == NATIVE);
        let Some(own) = own else { continue };
        for measure in measures(workload) {
            let (subject, over) = (own.name.clone(), entry.name.clone());
            let times = measure.advantage(rounds, &subject, &over, level);
            list.extend(times.map(|times| Advantage { measure, of: subject, over, times }));
        }
    }
    list
}

/// The context to load with: what was asked for, else what the workload takes.
fn context(timing: &Timing, workload: &Workload, model: &Model) -> anyhow::Result<usize> {
    let needed = workload.context();
    let context = timing.engine.context.unwrap_or(needed);
    if needed > context {
        bail!(
            "--prompt-tokens and --new-tokens need {needed} tokens, more than --context {context}"
        );
    }
    if needed > model.spec.context {
        bail!(
            "--prompt-tokens and --new-tokens need {needed} tokens and the model was made for {}; \
             ask for fewer",
            model.spec.context
        );
    }
    Ok(context)
}

/// What a reader should know: failed trials, and a machine that was busy with something else.
fn warnings(rounds: &[Round]) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    for round in rounds {
        if let Err(why) = &round.outcome {
            list.push(format!("{}, round {}: {why}", round.candidate, round.round + 1));
        }
    }
    let noisy = rounds.iter().filter(|r| r.noise.is_some_and(|n| n.warning().is_some())).count();
    let worst = rounds.iter().filter_map(|r| r.noise).max_by(|a, b| busy(a).total_cmp(&busy(b)));
    if let Some(warning) = worst.and_then(|noise| noise.warning()) {
        list.push(format!("{noisy} of {} trials were disturbed: {warning}", rounds.len()));
    }
    list
}

fn busy(noise: &Noise) -> f32 {
    noise.others.max(noise.stolen)
}
