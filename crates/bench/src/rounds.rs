use lathe_base::{Progress, Seconds};
use lathe_machine::{Monitor, Noise};
use serde::{Deserialize, Serialize};

use crate::{Error, Launcher, Order, Trial};

/// One trial of one candidate in one round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    pub round: usize,
    pub candidate: String,
    /// On the monitor's clock.
    pub start: Seconds,
    pub end: Seconds,
    /// How quiet the machine was meanwhile.
    pub noise: Option<Noise>,
    /// The samples, or why there are none.
    pub outcome: Result<Trial, String>,
}

/// How it goes on with a candidate after a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Again,
    /// It is not tried any more.
    Drop,
}

/// Runs the candidates in turn, round by round (A B C A B C …), each trial in a fresh process.
///
/// Interleaving lets a drift of the machine (heat, neighbours) fall on all candidates alike, so
/// that figures of one round can be paired. `done` holds what an interrupted run measured
/// already; `keep` is handed each new trial at once, so that nothing is lost.
///
/// # Errors
/// A failed trial is part of its [`Round`]; only an interruption or `keep`'s own error ends the
/// walk.
pub fn rounds<E: From<Error>>(
    launcher: &Launcher,
    candidates: &[(String, Order)],
    count: std::ops::Range<usize>,
    done: &[Round],
    monitor: &Monitor,
    progress: &dyn Progress,
    keep: &mut dyn FnMut(Round) -> Result<Next, E>,
) -> Result<(), E> {
    let is_done = |round: usize, id: &str| {
        done.iter().any(|trial| trial.round == round && trial.candidate == id)
    };
    let total = (count.len() * candidates.len()) as u64;
    let mut finished = 0;
    let mut dropped: Vec<&str> = Vec::new();
    for round in count {
        for (id, order) in candidates {
            if !is_done(round, id) && !dropped.contains(&id.as_str()) {
                progress.at(&format!("round {}: {id}", round + 1), finished, total);
                if keep(trial(launcher, round, id, order, monitor, progress)?)? == Next::Drop {
                    dropped.push(id);
                }
            }
            finished += 1;
        }
    }
    progress.at("measured", total, total);
    Ok(())
}

fn trial(
    launcher: &Launcher,
    round: usize,
    id: &str,
    order: &Order,
    monitor: &Monitor,
    progress: &dyn Progress,
) -> Result<Round, Error> {
    let start = monitor.now();
    let outcome = match launcher.run(order, monitor, progress) {
        Err(Error::Cancelled(stop)) => return Err(stop.into()),
        Err(error) => Err(error.to_string()),
        Ok(trial) => Ok(trial),
    };
    let end = monitor.now();
    let samples: Vec<_> =
        monitor.samples().into_iter().filter(|s| s.at >= start && s.at <= end).collect();
    let noise = Noise::of(&samples);
    Ok(Round { round, candidate: id.to_owned(), start, end, noise, outcome })
}
