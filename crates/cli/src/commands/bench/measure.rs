//! Trials in fresh processes, round by round.

use std::{thread::sleep, time::Duration};

use anyhow::{Context, bail};
use lathe_base::{Bytes, Progress};
use lathe_bench::{Launcher, Order, Round, Workload, figures, ratio, rounds};
use lathe_machine::{Machine, Monitor, Noise};
use lathe_models::Model;
use lathe_optimize::EngineOrder;

use super::{Bench, Measured, Timing};
use crate::open;

/// The machine is watched for so long before and after the trials.
const MARGIN: Duration = Duration::from_millis(400);

/// Measures models in turn; the first is the baseline.
pub(crate) fn measure(
    models: &[String],
    timing: &Timing,
    streams: &[usize],
    progress: &dyn Progress,
) -> anyhow::Result<Bench> {
    let workload = timing.workload(streams);
    let candidates = models
        .iter()
        .enumerate()
        .map(|(index, _)| Entry::new(models, index, timing, &workload, progress))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let launcher = Launcher {
        program: std::env::current_exe().context("cannot find the lathe program itself")?,
        arguments: vec!["trial".to_owned()],
        timeout: Duration::from_secs_f64(timing.trial_timeout.0.clamp(1.0, 1e6)),
    };
    let orders: Vec<(String, Order)> =
        candidates.iter().map(|c| (c.name.clone(), c.order.clone())).collect();
    let machine = Machine::analyse(None);
    let monitor = Monitor::start();
    sleep(MARGIN);
    let mut done = Vec::new();
    let mut keep = |round: Round| {
        done.push(round);
        anyhow::Ok(())
    };
    rounds(&launcher, &orders, 0..timing.rounds, &[], &monitor, progress, &mut keep)?;
    sleep(MARGIN);
    let timeline = monitor.stop();
    let baseline = candidates[0].name.clone();
    let models = candidates.into_iter().map(|c| c.measured(&done, &baseline, timing.level));
    Ok(Bench {
        models: models.collect(),
        workload,
        threads: timing.engine.threads(),
        level: timing.level,
        warnings: warnings(&done),
        machine,
        rounds: done,
        timeline,
    })
}

/// A model to measure.
struct Entry {
    name: String,
    size: Bytes,
    order: Order,
}

impl Entry {
    fn new(
        models: &[String],
        index: usize,
        timing: &Timing,
        workload: &Workload,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        let typed = &models[index];
        let checkpoint = open::checkpoint(typed, progress)?;
        let model = Model::read(&checkpoint).with_context(|| typed.clone())?;
        let context = context(timing, workload, &model).with_context(|| typed.clone())?;
        let batch = workload.streams.iter().copied().max().unwrap_or(1);
        let engine = EngineOrder { batch, ..timing.engine.order(&checkpoint, context) };
        // The same model twice shows what the machine's noise alone does.
        let before = models[..index].iter().filter(|m| *m == typed).count();
        let name = if before == 0 { typed.clone() } else { format!("{typed} ({})", before + 1) };
        let engine = serde_json::to_value(engine)?;
        let order = Order { engine, workload: workload.clone() };
        Ok(Self { name, size: checkpoint.stored_bytes(), order })
    }

    fn measured(self, rounds: &[Round], baseline: &str, level: f64) -> Measured {
        Measured {
            figures: figures(rounds, &self.name, level),
            ratio: if self.name == baseline {
                None
            } else {
                ratio(rounds, &self.name, baseline, level)
            },
            name: self.name,
            size: self.size,
        }
    }
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
