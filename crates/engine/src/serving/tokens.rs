use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use lathe_api::Flow;

use crate::{
    Error,
    backend::Backend,
    serving::{
        active::Active,
        scheduler::{Fed, OnUpdate, Scheduler},
        submission::{Served, Update},
    },
};

/// From a pass's logits to tokens, and to the ends of texts.
impl<'a, B: Backend> Scheduler<'a, B> {
    /// From the rows of logits, what was asked of prompts, and a token for each of the sequences
    /// that are ready, and those after its guesses.
    pub(super) fn advance(&mut self, fed: &[Fed], on: &mut OnUpdate<'_>) {
        let mut logits = std::mem::take(&mut self.logits);
        let mut ends = Vec::new();
        let mut joining = Vec::new();
        let mut rows = logits.chunks_exact_mut(self.executor.spec.vocab);
        for Fed { at, watched, ready } in fed {
            if *watched > 0 {
                self.running[*at].watch(rows.by_ref().take(*watched));
            }
            if !ready {
                continue;
            }
            let Some(row) = rows.next() else { break };
            let guessed = self.running[*at].guesses.len();
            let mut guessed: Vec<&mut [f32]> = rows.by_ref().take(guessed).collect();
            let id = self.running[*at].id;
            let mut others = match self.prefilled(*at, on) {
                Flow::Continue => self.siblings(*at, joining.len()),
                Flow::Stop => {
                    ends.push((id, None));
                    continue;
                }
            };
            let rows: Vec<Vec<f32>> = others.iter().map(|_| row.to_vec()).collect();
            let chosen = choose(&mut self.running[*at], row);
            let mut end = self.report(id, chosen, on);
            if !guessed.is_empty() {
                end = self.check(*at, &mut guessed, end, on);
            }
            ends.extend(end);
            for (one, mut row) in others.iter_mut().zip(rows) {
                let chosen = choose(one, &mut row);
                ends.extend(self.report(id, chosen, on));
            }
            joining.append(&mut others);
        }
        self.logits = logits;
        joining.into_iter().for_each(|one| self.join(one));
        self.retire(ends, on);
    }

    /// Reports a prompt that is complete for the first time.
    fn prefilled(&mut self, at: usize, on: &mut OnUpdate<'_>) -> Flow {
        let id = self.running[at].id;
        let Some(group) = self.groups.get_mut(&id) else { return Flow::Stop };
        if group.prefilled {
            return Flow::Continue;
        }
        group.prefilled = true;
        group.forks = true;
        let Served { prompt_tokens: tokens, cached_tokens: cached, .. } = group.served;
        let log_probs = self.running[at].told();
        on(id, Update::Prefilled { tokens, cached, log_probs })
    }

    /// The other texts of a submission whose prompt has just been computed: those that go on from
    /// its pages at once. The others wait.
    fn siblings(&mut self, at: usize, joining: usize) -> Vec<Active<'a>> {
        let one = &self.running[at];
        let (id, submission) = (one.id, Arc::clone(&one.submission));
        let Some(group) = self.groups.get_mut(&id) else { return Vec::new() };
        if !std::mem::take(&mut group.forks) {
            return Vec::new();
        }
        let grammar = group.grammar.clone();
        let mut forks = Vec::new();
        for text in 1..submission.n {
            // Its settings were found fine when it was submitted.
            let Ok(mut other) = self.fresh((id, text), &submission, grammar.as_ref()) else {
                continue;
            };
            let place = self.running.len() + joining + forks.len() < self.rules.sequences;
            let fork = || self.executor.fork(&self.running[at].sequence).ok();
            match place.then(fork).flatten() {
                Some(sequence) => {
                    (other.sequence, other.begun) = (sequence, true);
                    forks.push(other);
                }
                None => self.queue.push(other),
            }
        }
        forks
    }

    /// Passes on what came of a choice. Gives what ends the submission, if anything does.
    pub(super) fn report(
        &mut self,
        id: u64,
        chosen: Result<Option<Update>, Error>,
        on: &mut OnUpdate<'_>,
    ) -> Option<(u64, Option<Error>)> {
        let update = match chosen {
            Ok(update) => update?,
            Err(error) => return Some((id, Some(error))),
        };
        self.counts.generated_tokens += 1;
        if let Some(group) = self.groups.get_mut(&id) {
            group.served.generated_tokens += 1;
            self.queue.charge(&group.submission.client, 1);
        }
        (on(id, update) == Flow::Stop).then_some((id, None))
    }

    /// Lets go of texts that have ended, and of submissions that must.
    fn retire(&mut self, ends: Vec<(u64, Option<Error>)>, on: &mut OnUpdate<'_>) {
        let (ended, running) =
            std::mem::take(&mut self.running).into_iter().partition(|one| one.finish.is_some());
        self.running = running;
        let ended: Vec<Active<'a>> = ended;
        for one in ended {
            self.speculator.forget(one.name());
            let (id, text, generated) = (one.id, one.text, one.generated);
            let Some(finish) = one.finish else { continue };
            drop(one);
            on(id, Update::Finished { text, finish, generated });
            let Some(group) = self.groups.get_mut(&id) else { continue };
            group.open -= 1;
            if group.open == 0 {
                self.end(id, None, on);
            }
        }
        for (id, error) in ends {
            match error {
                Some(error) => self.end(id, Some(error), on),
                None => self.cancel(id, on),
            }
        }
    }
}

/// Chooses a token; whatever goes wrong stays with this request.
pub(super) fn choose(one: &mut Active<'_>, row: &mut [f32]) -> Result<Option<Update>, Error> {
    let chosen = catch_unwind(AssertUnwindSafe(|| one.advance(row)));
    chosen.unwrap_or_else(|panic| Err(Error::panicked(&*panic)))
}
