//! Engines in turn, each under every level of load.

use std::sync::Arc;

use anyhow::{Context, bail};
use lathe_api::{Engine, Flow};
use lathe_base::{Progress, Seconds};
use lathe_bench::load::{
    Level, Limits, Pattern, Source, Spacing, Window, drive, load_figures, summary,
};
use lathe_engine::serving::{Limits as Room, Service};
use lathe_files::{Checkpoint, Folder};
use lathe_machine::Machine;
use lathe_models::Model;
use lathe_optimize::{EngineOrder, NATIVE};
use lathe_stats::Verdict;

use super::{
    Measured, Report, Tried, Workload, ask, client,
    shape::{Kind, Shape, words},
};
use crate::{
    commands::bench::BenchArgs,
    loading, open,
    peers::{Peer, Served, avoided},
};

/// Threads of the client, and connections: beyond it something is wrong.
const MOST_IN_FLIGHT: usize = 8192;
/// Where nobody says how many sequences an engine is to run together.
const SEQUENCES: usize = 8;
/// Requests of an offline run.
const OFFLINE: usize = 100;
/// Of a level where nothing else ends it.
const DURATION: Seconds = Seconds(30.0);

/// What all engines are given.
struct Stage<'a> {
    args: &'a BenchArgs,
    load: &'a Shape,
    checkpoint: &'a Checkpoint,
    model: &'a Model,
    source: Arc<Source>,
    context: usize,
    sequences: usize,
    vocab: usize,
    avoid: Vec<u32>,
    progress: &'a dyn Progress,
}

/// Measures what was asked for.
pub(super) fn run(
    args: &BenchArgs,
    load: &Shape,
    progress: &dyn Progress,
) -> anyhow::Result<Report> {
    let [typed] = &args.models[..] else {
        bail!("--load measures one model at a time; {} are named", args.models.len());
    };
    let peers = args.peers.find(args.load.url.as_deref())?;
    let checkpoint = open::checkpoint(typed, progress)?;
    let model = Model::read(&checkpoint).with_context(|| typed.clone())?;
    let tokenizer = open::tokenizer(&checkpoint).ok();
    let (source, prompts) = ask::source(args, load, &model, tokenizer.as_deref())?;
    let context = context(args, &source, &model)?;
    let levels = ask::levels(load, &source);
    let users = levels.iter().filter_map(|level| match level {
        Pattern::Closed { users } => Some(*users),
        _ => None,
    });
    let sequences = args.load.sequences.or(users.max()).unwrap_or(SEQUENCES);
    let stage = Stage {
        args,
        load,
        checkpoint: &checkpoint,
        model: &model,
        vocab: source.tokens.vocab,
        source: Arc::new(source),
        context,
        sequences,
        avoid: tokenizer.map(|t| avoided(&t)).unwrap_or_default(),
        progress,
    };
    let mut report = Report {
        model: typed.clone(),
        load: load.typed.clone(),
        workload: Workload {
            prompts,
            shared_prefix: args.load.shared_prefix,
            warmup: args.timing.warmup,
            seed: args.timing.seed,
            sequences,
        },
        objective: args.load.slo.clone().unwrap_or_default(),
        objective_share: args.load.slo_share,
        limits: stage.limits(levels.first()),
        window: Window { settle: args.load.settle, cool: args.load.cool_down },
        level: args.timing.level,
        engines: Vec::new(),
        interrupted: false,
        warnings: Vec::new(),
        machine: Machine::analyse(None),
    };
    let mut names = vec![None; usize::from(args.load.url.is_none())];
    names.extend(peers.iter().map(Some));
    for peer in names {
        let name = peer.map_or(NATIVE, |peer| &peer.name);
        match stage.engine(peer, &levels, &mut report) {
            Ok(()) => {}
            Err(error) if error.is::<lathe_base::Cancelled>() => report.interrupted = true,
            Err(error) => report.warnings.push(format!("{name}: {error:#}")),
        }
        if report.interrupted {
            break;
        }
    }
    Ok(report)
}

/// The longest sequence, which must fit the model.
fn context(args: &BenchArgs, source: &Source, model: &Model) -> anyhow::Result<usize> {
    let needed = source.context();
    let room = args.timing.engine.context.unwrap_or(model.spec.context);
    if needed > room {
        let of = match args.timing.engine.context {
            Some(_) => "--context is",
            None => "the model was made for",
        };
        bail!(
            "the longest request takes {needed} tokens and {of} {room}; ask for fewer, or cut a \
             trace's or data set's by --most-prompt, --most-new and --scale"
        );
    }
    Ok(args.timing.engine.context.unwrap_or(needed))
}

impl Stage<'_> {
    fn limits(&self, pattern: Option<&Pattern>) -> Limits {
        let load = &self.args.load;
        let timed = matches!(pattern, Some(Pattern::Timed { .. } | Pattern::Offline));
        let requests = match pattern {
            Some(Pattern::Offline) => load.max_requests.or(Some(OFFLINE)),
            _ => load.max_requests,
        };
        let usual = (requests.is_none() && !timed).then_some(DURATION);
        Limits {
            requests,
            duration: load.duration.or(usual),
            drain: load.drain,
            in_flight: MOST_IN_FLIGHT,
            seed: self.args.timing.seed,
        }
    }

    /// Starts an engine, warms it up and puts it under every level.
    fn engine(
        &self,
        peer: Option<&Peer>,
        levels: &[Pattern],
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let name = peer.map_or(NATIVE, |peer| &peer.name);
        self.progress.at(&format!("starting {name}"), 0, 1);
        let (engine, load) = match peer {
            None => self.native()?,
            Some(peer) => self.peer(peer)?,
        };
        for number in 0..self.args.timing.warmup {
            self.progress.at(
                &format!("warming {name} up"),
                number as u64,
                self.args.timing.warmup as u64,
            );
            self.progress.check()?;
            let request = self.source.warm_up(number);
            engine.generate(&request, &mut |_| match self.progress.cancelled() {
                true => Flow::Stop,
                false => Flow::Continue,
            })?;
        }
        self.progress.check()?;
        report.engines.push(Measured {
            engine: name.to_owned(),
            version: engine.info().version.clone(),
            load,
            levels: Vec::new(),
            summary: Default::default(),
        });
        let mut tried = Vec::new();
        match self.load.kind {
            Kind::Sweep(spacing) => self.sweep(&engine, name, spacing, &mut tried, report)?,
            _ => {
                for pattern in levels {
                    if report.interrupted {
                        break;
                    }
                    tried.push(self.level(&engine, name, pattern, None, report));
                }
            }
        }
        let levels: Vec<Level> = tried.iter().map(|tried| tried.level.clone()).collect();
        if let Some(measured) = report.engines.last_mut() {
            measured.summary = summary(&levels, self.args.load.slo_share);
            measured.levels = tried;
        }
        Ok(())
    }

    fn level(
        &self,
        engine: &Arc<dyn Engine>,
        name: &str,
        pattern: &Pattern,
        duration: Option<Seconds>,
        report: &mut Report,
    ) -> Tried {
        let mut limits = self.limits(Some(pattern));
        limits.duration = duration.or(limits.duration);
        let label = words(pattern);
        let title = format!("{name}, {label}");
        let (mut samples, interrupted) =
            drive(engine, pattern, &self.source, &limits, &title, self.progress);
        if interrupted {
            report.interrupted = true;
            // They say when the user stopped, not what the engine does.
            samples.retain(|sample| {
                sample.failure.as_ref().is_none_or(|f| f.why != lathe_bench::load::Why::Unfinished)
            });
        }
        let figures = load_figures(
            &samples,
            pattern,
            &report.window,
            &report.objective,
            self.args.timing.level,
        );
        let client_check = match self.args.load.check_client && !report.interrupted {
            true => client::check(&figures, pattern, &self.source, &limits, self.progress)
                .unwrap_or_else(|error| {
                    report.warnings.push(format!("--check-client: {error:#}"));
                    None
                }),
            false => None,
        };
        let pattern = match pattern {
            // Its times are those of its samples.
            Pattern::Timed { .. } => Pattern::Timed { at: Vec::new() },
            other => other.clone(),
        };
        Tried { name: label, level: Level { pattern, figures }, client_check, samples }
    }

    /// Doubles the rate until the engine is full or the objective is missed, then looks closer.
    fn sweep(
        &self,
        engine: &Arc<dyn Engine>,
        name: &str,
        spacing: Spacing,
        tried: &mut Vec<Tried>,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        const DOUBLINGS: usize = 12;
        const CLOSER: usize = 3;
        let alone = Pattern::Closed { users: 1 };
        let whole = self.limits(None).duration.unwrap_or(DURATION);
        let first = self.level(engine, name, &alone, Some(Seconds(whole.0 / 3.0)), report);
        if report.interrupted {
            return Ok(());
        }
        let took = first.level.figures.e2e.map(|e2e| e2e.mean);
        let took = took.context("no request of a single user came to its end")?;
        let (mut good, mut full): (Option<f64>, Option<f64>) = (None, None);
        let mut rate = 0.5 / took.max(1e-4);
        // Rates between a good one and a full one.
        let mut closer = 0;
        while tried.len() < DOUBLINGS + CLOSER && closer <= CLOSER {
            let level = self.level(engine, name, &Pattern::Open { rate, spacing }, None, report);
            let is_full = self.is_full(&level.level);
            tried.push(level);
            if report.interrupted {
                break;
            }
            match is_full {
                true => full = Some(full.map_or(rate, |full| full.min(rate))),
                false => good = Some(good.map_or(rate, |good| good.max(rate))),
            }
            rate = match (good, full) {
                (_, None) => rate * 2.0,
                (None, Some(full)) => full / 2.0,
                (Some(good), Some(full)) => {
                    closer += 1;
                    (good * full).sqrt()
                }
            };
        }
        tried.sort_by(|a, b| rate_of(a).total_cmp(&rate_of(b)));
        Ok(())
    }

    /// Whether more load would only make people wait.
    fn is_full(&self, level: &Level) -> bool {
        let figures = &level.figures;
        let grows = figures.growth.is_some_and(|growth| growth.grows);
        let failed = figures.completed < figures.requests;
        let missed = level.verdict(self.args.load.slo_share) == Some(Verdict::Fails);
        // A client that is late says nothing of the engine.
        grows || failed || missed
    }

    fn native(&self) -> anyhow::Result<(Arc<dyn Engine>, Seconds)> {
        let start = std::time::Instant::now();
        let order = self.args.timing.engine.order(self.checkpoint, self.context);
        let guesses = self.args.speculation.guesses(self.progress)?;
        let order = EngineOrder { batch: self.sequences, guesses, ..order };
        let native = Arc::new(open::native(self.checkpoint, &order)?);
        let room = Room {
            // What waits is what is measured.
            waiting: usize::MAX,
            waiting_tokens: usize::MAX,
            share_prefixes: self.args.load.share_prefixes,
            ..Room::default()
        };
        let service = Service::start(native, room)?;
        Ok((Arc::new(service), start.elapsed().into()))
    }

    fn peer(&self, peer: &Peer) -> anyhow::Result<(Arc<dyn Engine>, Seconds)> {
        let engine = &self.args.timing.engine;
        if peer.reads_files() {
            if matches!(self.checkpoint.folder, Folder::Memory(_)) {
                bail!("the built-in model has no files; `lathe quantize demo` makes some");
            }
            if let Some(why) = peer.refuses(&loading::stored(self.model, self.checkpoint)) {
                bail!("{why}");
            }
        }
        let kv = open::kv(&engine.kv)?;
        let order = peer.order(
            &Served {
                model: &self.checkpoint.path,
                threads: engine.threads(),
                context: self.context,
                streams: self.sequences,
                kv: &engine.kv,
                kv_bytes: self.model.spec.cache_bytes(self.context, self.sequences, kv).0,
                vocab: self.vocab,
                avoid: &self.avoid,
                patience: self.args.timing.trial_timeout,
            },
            self.progress,
        )?;
        let (engine, load) = order.start()?;
        Ok((Arc::from(engine), load))
    }
}

fn rate_of(tried: &Tried) -> f64 {
    tried.level.pattern.rate().unwrap_or(0.0)
}
