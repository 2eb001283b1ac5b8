use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use lathe_api::{Finish, Flow};
use lathe_kernels::PAGE_TOKENS;
use lathe_tokens::Tokenizer;

use crate::{
    Error,
    backend::Backend,
    executor::Executor,
    sampler::Sampler,
    serving::{
        active::Active,
        plan::{Prompt, shares},
        queue::{Queue, Waits},
        snapshot::Snapshot,
        submission::{Served, Submission, Update},
    },
};

/// Decides what each pass over the weights computes.
///
/// A step feeds one token of every sequence that decodes and shares out what is left of its budget
/// among prompts, so that a long prompt never holds up those that decode. Pages are taken as they
/// are needed; where they run out, the sequence of the lowest rank gives up its own and is computed
/// anew later.
pub(crate) struct Scheduler<'a, B: Backend> {
    executor: &'a Executor<B>,
    tokenizer: Option<&'a Tokenizer>,
    rules: Rules,
    queue: Queue<Active<'a>>,
    /// In the order of their rank: the last gives way first.
    running: Vec<Active<'a>>,
    groups: HashMap<u64, Group>,
    logits: Vec<f32>,
    counts: Snapshot,
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

/// A submission that has not ended.
struct Group {
    submission: Arc<Submission>,
    /// Texts that have not ended.
    open: usize,
    begun: bool,
    prefilled: bool,
    /// The prompt is complete, and the other texts have not begun.
    forks: bool,
    /// It gave up its pages: what it finds in the cache may be its own.
    disturbed: bool,
    cancelled: bool,
    served: Served,
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

/// Whether a submission can be run at all.
///
/// # Errors
/// [`Error::Request`], [`Error::Token`], [`Error::Context`].
pub(crate) fn admissible<B: Backend>(
    executor: &Executor<B>,
    tokenizer: Option<&Tokenizer>,
    submission: &Submission,
) -> Result<(), Error> {
    let request = &submission.request;
    if request.prompt.is_empty() {
        return Err(Error::Request("the prompt is empty; it needs at least one token".into()));
    }
    let vocab = executor.spec.vocab;
    if let Some(id) = request.prompt.iter().find(|id| **id as usize >= vocab) {
        return Err(Error::Token { id: *id, vocab });
    }
    let needed = request.prompt.len().saturating_add(request.max_tokens);
    let context = executor.context.min(executor.pages.counts().all * PAGE_TOKENS);
    if needed > context {
        return Err(Error::Context { needed, context });
    }
    if tokenizer.is_none() && !request.stop_strings.is_empty() {
        return Err(Error::Request("stop strings need a tokenizer".into()));
    }
    if submission.n == 0 {
        return Err(Error::Request("n must be at least 1".into()));
    }
    Sampler::new(&request.sampling, &[]).map(|_| ())
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
            logits: Vec::new(),
            counts: Snapshot::default(),
        }
    }

    /// Takes on a submission; `id`s must grow.
    ///
    /// # Errors
    /// As [`admissible`].
    pub(crate) fn submit(&mut self, id: u64, submission: Submission) -> Result<(), Error> {
        admissible(self.executor, self.tokenizer, &submission)?;
        let submission = Arc::new(submission);
        let first = self.fresh((id, 0), &submission)?;
        self.queue.enter(&submission.client);
        self.queue.push(first);
        let served = Served { prompt_tokens: submission.request.prompt.len(), ..Served::default() };
        let open = submission.n;
        let group = Group {
            submission,
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

    fn fresh(&self, id: (u64, usize), submission: &Arc<Submission>) -> Result<Active<'a>, Error> {
        Active::new(id, submission, self.executor.sequence(), self.tokenizer)
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
        let failed = self.counts.failed + self.groups.len() as u64;
        let counts = Snapshot { failed, ..self.counts };
        Self { counts, ..Self::new(self.executor, self.tokenizer, self.rules) }
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
        self.counts.steps += 1;
        let decoding: Vec<bool> = self.running.iter().map(Active::decodes).collect();
        let mut ready = Vec::new();
        let mut feeds = Vec::new();
        for (at, one) in self.running.iter_mut().enumerate().filter(|(_, one)| one.planned > 0) {
            if one.planned == one.rest() {
                ready.push(at);
            }
            if !decoding[at] {
                self.counts.prefill_tokens += one.planned as u64;
            }
            feeds.push(one.feed());
        }
        self.logits.clear();
        let done = self.executor.forward(&mut feeds, &mut self.logits);
        drop(feeds);
        if let Err(error) = done {
            // Every cause was looked for before: who is to blame is not known, so all that were
            // in the pass end.
            let why = error.to_string();
            let fed = self.running.iter().filter(|one| one.planned > 0).map(|one| one.id);
            let fed: Vec<u64> = fed.collect();
            for id in fed {
                self.end(id, Some(Error::Broken { why: why.clone() }), on);
            }
            return Step::Worked;
        }
        if self.rules.share_prefixes {
            for one in &mut self.running {
                one.publish(self.executor);
            }
        }
        self.advance(&ready, on);
        Step::Worked
    }

    /// Starts what waits, as far as there are places and pages. Gives what was lacking.
    fn admit(&mut self) -> Option<Error> {
        while let Some(mut next) = self.queue.pop() {
            loop {
                match self.start(&mut next) {
                    Ok(gained) => {
                        self.gained(next.id, gained);
                        break;
                    }
                    Err(error) => match self.victim_for(&next) {
                        Some(at) => self.preempt(at),
                        None => {
                            self.queue.push(next);
                            return Some(error);
                        }
                    },
                }
            }
            if let Some(group) = self.groups.get_mut(&next.id)
                && !group.begun
            {
                group.begun = true;
                self.queue.charge(&next.submission.client, group.served.prompt_tokens);
            }
            next.begun = true;
            self.join(next);
        }
        None
    }

    /// Gives a sequence what it needs to start, and the tokens that it found in the cache.
    fn start(&mut self, next: &mut Active<'a>) -> Result<usize, Error> {
        if self.running.len() >= self.rules.sequences {
            return Err(Error::Sequences);
        }
        if self.rules.reserve {
            let most = next.most();
            return self.executor.make_room(&mut next.sequence, most).map(|()| 0);
        }
        let gained = if self.rules.share_prefixes { next.adopt(self.executor) } else { 0 };
        let needed = next.len().div_ceil(PAGE_TOKENS) - next.sequence.pages();
        // One page for each that runs, so that those do not have to give way at once.
        let free = self.executor.pages.counts().available();
        if needed + self.running.len() > free {
            next.sequence.clear();
            return Err(Error::Pages { needed, free });
        }
        Ok(gained)
    }

    /// Counts tokens that were found in the cache.
    fn gained(&mut self, id: u64, tokens: usize) {
        self.counts.prefix_hit_tokens += tokens as u64;
        if let Some(group) = self.groups.get_mut(&id)
            && !(group.prefilled || group.disturbed)
        {
            group.served.cached_tokens += tokens;
        }
    }

    /// Who gives way to a sequence that has no place: one of a lower priority, or, where its client
    /// has none running at all, the youngest of the client that has the most.
    fn victim_for(&self, next: &Active<'a>) -> Option<usize> {
        if self.rules.reserve {
            return None;
        }
        let priority = next.submission.priority;
        let last = self.running.len().checked_sub(1)?;
        if self.running[last].submission.priority < priority {
            return Some(last);
        }
        let client = &next.submission.client;
        let mut of: HashMap<&str, (usize, usize)> = HashMap::new();
        for (at, one) in self.running.iter().enumerate() {
            if one.submission.client == *client {
                return None;
            }
            if one.submission.priority == priority {
                let (count, youngest) = of.entry(&one.submission.client).or_default();
                (*count, *youngest) = (*count + 1, at);
            }
        }
        let most = of.into_values().max()?;
        (most.0 > 1).then_some(most.1)
    }

    /// Takes a sequence's pages and makes it wait.
    fn preempt(&mut self, at: usize) {
        let mut one = self.running.remove(at);
        one.sequence.clear();
        one.planned = 0;
        self.counts.preemptions += 1;
        if let Some(group) = self.groups.get_mut(&one.id) {
            group.disturbed = true;
        }
        self.queue.push(one);
    }

    /// Says how many tokens of each sequence the next pass computes, and has the pages for them.
    fn plan(&mut self) {
        let switch = self.executor.recompute_beyond();
        for one in &mut self.running {
            one.planned = 0;
            one.cross(switch, self.rules.reserve);
        }
        let mut at = 0;
        let mut decoding = 0;
        while at < self.running.len() {
            if self.running[at].decodes() && self.room(at, 1) {
                self.running[at].planned = 1;
                decoding += 1;
            }
            at += 1;
        }
        // However many decode, prompts go on.
        let budget = self.rules.step_tokens;
        let left = budget.saturating_sub(decoding).max(budget.div_ceil(4));
        self.plan_prompts(left);
    }

    fn plan_prompts(&mut self, budget: usize) {
        for at in 0..self.running.len() {
            // Another with the same beginning may have come further.
            if self.rules.share_prefixes && !self.running[at].decodes() {
                let gained = self.running[at].adopt(self.executor);
                let id = self.running[at].id;
                self.gained(id, gained);
            }
        }
        // Of several that would compute the same page, the first does, and the others find it.
        let mut pages = HashSet::new();
        let mut prompts = Vec::new();
        for one in self.running.iter().filter(|one| one.planned == 0) {
            let page = one.next_page(self.executor).filter(|_| self.rules.share_prefixes);
            let first = page.is_none_or(|page| pages.insert(page));
            if first || !one.sequence.is_at_page() {
                prompts.push(one);
            }
        }
        let order: Vec<(u64, usize)> = prompts.iter().map(|one| (one.id, one.text)).collect();
        let prompts: Vec<Prompt> = prompts
            .iter()
            .map(|one| Prompt {
                priority: one.submission.priority,
                start: one.sequence.len(),
                rest: one.rest(),
            })
            .collect();
        for (name, share) in order.into_iter().zip(shares(&prompts, budget)) {
            // Those of lower rank may have given way meanwhile.
            let found = self.running.iter().position(|one| (one.id, one.text) == name);
            if let Some(at) = found
                && share > 0
                && self.room(at, share)
            {
                self.running[at].planned = share;
            }
        }
    }

    /// Makes room for more tokens of a sequence. Where pages lack, the last in rank give way, which
    /// may be the sequence itself.
    fn room(&mut self, at: usize, tokens: usize) -> bool {
        while at < self.running.len() {
            let one = &mut self.running[at];
            let needed = one.sequence.len() + tokens;
            if self.executor.make_room(&mut one.sequence, needed).is_ok() {
                return true;
            }
            self.preempt(self.running.len() - 1);
        }
        false
    }

    /// A token for each of the sequences that are `ready`, from the rows of logits.
    fn advance(&mut self, ready: &[usize], on: &mut OnUpdate<'_>) {
        let mut logits = std::mem::take(&mut self.logits);
        let mut ends = Vec::new();
        let mut joining = Vec::new();
        for (at, row) in ready.iter().zip(logits.chunks_exact_mut(self.executor.spec.vocab)) {
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
            ends.extend(self.report(id, chosen, on));
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
        on(id, Update::Prefilled { tokens, cached })
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
        let mut forks = Vec::new();
        for text in 1..submission.n {
            // Its settings were found fine when it was submitted.
            let Ok(mut other) = self.fresh((id, text), &submission) else { continue };
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
    fn report(
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

    fn join(&mut self, one: Active<'a>) {
        let at = self.running.partition_point(|other| other.rank() < one.rank());
        self.running.insert(at, one);
    }

    /// Lets go of texts that have ended, and of submissions that must.
    fn retire(&mut self, ends: Vec<(u64, Option<Error>)>, on: &mut OnUpdate<'_>) {
        let (ended, running) =
            std::mem::take(&mut self.running).into_iter().partition(|one| one.finish.is_some());
        self.running = running;
        let ended: Vec<Active<'a>> = ended;
        for one in ended {
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

    /// Takes a submission's texts out of everything.
    fn take(&mut self, id: u64) -> Vec<Active<'a>> {
        let is = |one: &Active<'a>| one.id == id;
        let mut taken = self.queue.remove(is);
        taken.extend(self.running.extract_if(.., |one| is(one)));
        taken.sort_by_key(|one| one.text);
        taken
    }

    /// Ends a submission.
    fn end(&mut self, id: u64, error: Option<Error>, on: &mut OnUpdate<'_>) {
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

/// Chooses a token; whatever goes wrong stays with this request.
fn choose(one: &mut Active<'_>, row: &mut [f32]) -> Result<Option<Update>, Error> {
    let chosen = catch_unwind(AssertUnwindSafe(|| one.advance(row)));
    chosen.unwrap_or_else(|panic| Err(Error::panicked(&*panic)))
}
