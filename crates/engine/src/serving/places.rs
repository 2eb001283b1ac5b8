use std::collections::{HashMap, HashSet};

use lathe_kernels::PAGE_TOKENS;

use crate::{
    Error,
    backend::Backend,
    serving::{
        active::Active,
        plan::{Prompt, shares},
        scheduler::Scheduler,
    },
};

/// Who has a place and pages, and how many tokens of each the next pass computes.
impl<'a, B: Backend> Scheduler<'a, B> {
    /// Starts what waits, as far as there are places and pages. Gives what was lacking.
    pub(super) fn admit(&mut self) -> Option<Error> {
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
        self.speculator.forget(one.name());
        self.counts.preemptions += 1;
        if let Some(group) = self.groups.get_mut(&one.id) {
            group.disturbed = true;
        }
        self.queue.push(one);
    }

    /// Says how many tokens of each sequence the next pass computes, and has the pages for them.
    pub(super) fn plan(&mut self) {
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
        let mut visible = self.executor.visible();
        let order: Vec<(u64, usize)> = prompts.iter().map(|one| (one.id, one.text)).collect();
        let prompts: Vec<Prompt> = prompts
            .iter()
            .map(|one| {
                let mut rest = one.rest();
                if one.is_watched() {
                    rest = rest.min(visible);
                    visible -= rest;
                }
                let start = one.sequence.len();
                Prompt { priority: one.submission.priority, start, rest }
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
}
