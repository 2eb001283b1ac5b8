use std::{collections::HashMap, sync::Arc, time::Instant};

use lathe_api::{Finish, Flow};
use lathe_grammar::Compiled;
use lathe_tokens::Tokenizer;

use crate::{
    Error,
    backend::Backend,
    executor::Executor,
    serving::{
        active::Active,
        queue::{Queue, Waits},
        snapshot::Snapshot,
        speculation::{Checked, Learnt, Speculation, Speculator},
        submission::{Served, Submission, Update},
    },
};

/// Decides what each pass over the weights computes.
///
/// A step feeds one token of every sequence that decodes and shares out what is left of its budget
/// among prompts, so that a long prompt never holds up those that decode; where there are no
/// prompts, it goes to guesses ([`super::Speculation`]). Pages are taken as they
/// are needed; where they run out, the sequence of the lowest rank gives up its own and is computed
/// anew later.
pub(crate) struct Scheduler<'a, B: Backend> {
    pub(super) executor: &'a Executor<B>,
    pub(super) tokenizer: Option<&'a Tokenizer>,
    pub(super) rules: Rules,
    pub(super) queue: Queue<Active<'a>>,
    /// In the order of their rank: the last gives way first.
    pub(super) running: Vec<Active<'a>>,
    pub(super) groups: HashMap<u64, Group>,
    pub(super) speculator: Speculator<'a>,
    pub(super) logits: Vec<f32>,
    pub(super) counts: Snapshot,
}

/// How a scheduler works.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Sequences that run together.
    pub(crate) sequences: usize,
    /// Tokens of a step.
    pub(crate) step_tokens: usize,
    /// Whether sequences that begin alike share pages.
    pub(crate) share_prefixes: bool,
    /// Take all pages that a sequence may need at its start, so that it never gives way: for
    /// callers that are not alone with the cache.
    pub(crate) reserve: bool,
}

/// What came of a step.
#[derive(Debug)]
pub(crate) enum Step {
    /// There is nothing to do.
    Idle,
    Worked,
    /// Nothing fits, because users outside this scheduler hold the pages.
    Stalled(Error),
}

/// What a pass was fed of one sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fed {
    /// Which of those that run.
    pub(super) at: usize,
    /// Rows of logits that tell of its prompt.
    pub(super) watched: usize,
    /// Whether a row follows from which its next token is chosen.
    pub(super) ready: bool,
}

/// A submission that has not ended.
pub(super) struct Group {
    pub(super) submission: Arc<Submission>,
    pub(super) grammar: Option<Arc<Compiled>>,
    /// Texts that have not ended.
    pub(super) open: usize,
    pub(super) begun: bool,
    pub(super) prefilled: bool,
    /// The prompt is complete, and the other texts have not begun.
    pub(super) forks: bool,
    /// It gave up its pages: what it finds in the cache may be its own.
    pub(super) disturbed: bool,
    pub(super) cancelled: bool,
    pub(super) served: Served,
}

/// Hears what happens to which submission.
pub(crate) type OnUpdate<'a> = dyn FnMut(u64, Update) -> Flow + 'a;

impl Waits for Active<'_> {
    fn client(&self) -> &Arc<str> {
        &self.submission.client
    }
    fn priority(&self) -> i32 {
        self.submission.priority
    }
    fn age(&self) -> (u64, usize) {
        (self.id, self.text)
    }
}

impl<'a, B: Backend> Scheduler<'a, B> {
    pub(crate) fn new(
        executor: &'a Executor<B>,
        tokenizer: Option<&'a Tokenizer>,
        rules: Rules,
    ) -> Self {
        Self {
            executor,
            tokenizer,
            rules,
            queue: Queue::default(),
            running: Vec::new(),
            groups: HashMap::new(),
            speculator: Speculator::new(Speculation::Off, None, Learnt::default()),
            logits: Vec::new(),
            counts: Snapshot::default(),
        }
    }

    /// The same with guesses; without, there are none.
    pub(crate) fn with_speculator(self, speculator: Speculator<'a>) -> Self {
        Self { speculator, ..self }
    }

    /// Takes on a submission; `id`s must grow. `grammar` is that of its request.
    ///
    /// # Errors
    /// As [`Submission::check`].
    pub(crate) fn submit(
        &mut self,
        id: u64,
        submission: Submission,
        grammar: Option<Arc<Compiled>>,
    ) -> Result<(), Error> {
        submission.check(self.executor, self.tokenizer)?;
        let submission = Arc::new(submission);
        let first = self.fresh((id, 0), &submission, grammar.as_ref())?;
        self.queue.enter(&submission.client);
        self.queue.push(first);
        let served = Served { prompt_tokens: submission.request.prompt.len(), ..Served::default() };
        let open = submission.n;
        let group = Group {
            submission,
            grammar,
            open,
            begun: false,
            prefilled: false,
            forks: false,
            disturbed: false,
            cancelled: false,
            served,
        };
        self.groups.insert(id, group);
        Ok(())
    }

    pub(super) fn fresh(
        &self,
        id: (u64, usize),
        submission: &Arc<Submission>,
        grammar: Option<&Arc<Compiled>>,
    ) -> Result<Active<'a>, Error> {
        let guide = grammar.map(|grammar| grammar.guide());
        Active::new(id, submission, guide, self.executor.sequence(), self.tokenizer)
    }

    /// Ends a submission, if it has not ended; its pages are free when this returns.
    pub(crate) fn cancel(&mut self, id: u64, on: &mut OnUpdate<'_>) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.cancelled = true;
        // The other texts come to be when the prompt is complete.
        let unborn = if group.prefilled { 0..0 } else { 1..group.submission.n };
        let taken = self.take(id);
        let ended: Vec<_> = taken.iter().map(|one| (one.text, one.generated)).collect();
        drop(taken);
        for (text, generated) in ended.into_iter().chain(unborn.map(|text| (text, 0))) {
            on(id, Update::Finished { text, finish: Finish::Cancelled, generated });
        }
        self.end(id, None, on);
    }

    /// Another with the same rules and counts, without anything under way.
    pub(crate) fn renewed(self) -> Self {
        let speculator = self.speculator.renewed();
        let failed = self.counts.failed + self.groups.len() as u64;
        let counts = Snapshot { failed, ..self.counts };
        Self { counts, speculator, ..Self::new(self.executor, self.tokenizer, self.rules) }
    }

    /// What it has learnt of guesses.
    pub(crate) fn into_learnt(self) -> Learnt {
        self.speculator.into_learnt()
    }

    /// Whether nothing runs or waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.groups.is_empty()
    }

    /// What it is doing now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let waiting = self.groups.values().filter(|group| !group.begun);
        let tokens = waiting.clone().map(|group| group.served.prompt_tokens);
        let now = Snapshot {
            running: self.running.len(),
            waiting: waiting.clone().count(),
            waiting_tokens: tokens.sum(),
            preempted: self.queue.iter().filter(|one| one.begun).count(),
            ..self.counts
        };
        now.with_pages(self.executor.pages.counts())
    }

    /// One pass for all that runs, then a token for each sequence that is ready for one.
    pub(crate) fn step(&mut self, on: &mut OnUpdate<'_>) -> Step {
        let lacking = self.admit();
        self.plan();
        if self.running.iter().all(|one| one.planned == 0) {
            return match (self.is_idle(), lacking) {
                (true, _) => Step::Idle,
                (false, Some(error)) => Step::Stalled(error),
                // What runs gave up its pages just now.
                (false, None) => Step::Worked,
            };
        }
        self.guess();
        self.counts.steps += 1;
        let before = (self.counts.proposed_tokens, self.counts.accepted_tokens);
        let decoding: Vec<bool> = self.running.iter().map(Active::decodes).collect();
        let mut fed = Vec::new();
        let mut feeds = Vec::new();
        for (at, one) in self.running.iter_mut().enumerate().filter(|(_, one)| one.planned > 0) {
            let ready = one.planned == one.rest();
            fed.push(Fed { at, watched: one.watched(), ready });
            if !decoding[at] {
                self.counts.prefill_tokens += one.planned as u64;
            }
            feeds.push(one.feed());
        }
        self.logits.clear();
        let start = Instant::now();
        let done = self.executor.forward(&mut feeds, &mut self.logits);
        let seconds = start.elapsed().as_secs_f64();
        drop(feeds);
        if let Err(error) = done {
            // Every cause was looked for before: who is to blame is not known, so all that were
            // in the pass end.
            let why = error.to_string();
            let ids = self.running.iter().filter(|one| one.planned > 0).map(|one| one.id);
            let ids: Vec<u64> = ids.collect();
            for id in ids {
                self.end(id, Some(Error::Broken { why: why.clone() }), on);
            }
            return Step::Worked;
        }
        if self.rules.share_prefixes {
            // What was guessed is not known to be part of any text yet.
            for one in self.running.iter_mut().filter(|one| one.guesses.is_empty()) {
                one.publish(self.executor);
            }
        }
        let plain = decoding.iter().all(|decodes| *decodes).then_some(fed.len());
        self.advance(&fed, on);
        if let Some(plain) = plain {
            let Snapshot { proposed_tokens, accepted_tokens, .. } = self.counts;
            let guesses = (proposed_tokens - before.0) as usize;
            let right = (accepted_tokens - before.1) as usize;
            self.speculator.settle(Checked { plain, guesses, right, seconds });
        }
        Step::Worked
    }

    pub(super) fn join(&mut self, one: Active<'a>) {
        let at = self.running.partition_point(|other| other.rank() < one.rank());
        self.running.insert(at, one);
    }

    /// Takes a submission's texts out of everything.
    fn take(&mut self, id: u64) -> Vec<Active<'a>> {
        let is = |one: &Active<'a>| one.id == id;
        let mut taken = self.queue.remove(is);
        taken.extend(self.running.extract_if(.., |one| is(one)));
        taken.sort_by_key(|one| one.text);
        taken.iter().for_each(|one| self.speculator.forget(one.name()));
        taken
    }

    /// Ends a submission.
    pub(super) fn end(&mut self, id: u64, error: Option<Error>, on: &mut OnUpdate<'_>) {
        drop(self.take(id));
        let Some(group) = self.groups.remove(&id) else { return };
        self.queue.leave(&group.submission.client);
        let count = match (&error, group.cancelled) {
            (Some(_), _) => &mut self.counts.failed,
            (None, true) => &mut self.counts.cancelled,
            (None, false) => &mut self.counts.finished,
        };
        *count += 1;
        on(id, Update::Done(error.map_or(Ok(group.served), Err)));
    }
}
