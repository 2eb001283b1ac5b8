use crate::pages::PageCounts;

/// What a service is doing, and what it has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Sequences that have pages.
    pub running: usize,
    /// Requests that have not begun.
    pub waiting: usize,
    /// Tokens of their prompts.
    pub waiting_tokens: usize,
    /// Sequences that have begun, gave up their pages to others, and wait to go on.
    pub preempted: usize,

    /// Pages of the KV cache, of [`lathe_kernels::PAGE_TOKENS`] tokens each.
    pub pages: usize,
    /// Those without contents.
    pub free_pages: usize,
    /// Those that no sequence uses but whose contents may be wanted again.
    pub cached_pages: usize,

    /// Forward passes over all that runs.
    pub steps: u64,
    /// Tokens of prompts (and, after a preemption, of what was generated) that were computed.
    pub prefill_tokens: u64,
    /// Those that were found in the cache instead.
    pub prefix_hit_tokens: u64,
    pub generated_tokens: u64,
    /// Tokens that were guessed and computed with the one before them; see [`super::Speculation`].
    pub proposed_tokens: u64,
    /// Those that were right: so many passes over the weights were saved.
    pub accepted_tokens: u64,
    pub preemptions: u64,
    /// Requests, by their ends.
    pub finished: u64,
    pub cancelled: u64,
    pub failed: u64,
    /// Requests that were not taken on.
    pub refused: u64,
}

impl Snapshot {
    pub(crate) fn with_pages(self, pages: PageCounts) -> Self {
        let PageCounts { all, free, cached } = pages;
        Self { pages: all, free_pages: free, cached_pages: cached, ..self }
    }

    /// Adds what another has done.
    pub(crate) fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.steps, other.steps),
            (&mut self.prefill_tokens, other.prefill_tokens),
            (&mut self.prefix_hit_tokens, other.prefix_hit_tokens),
            (&mut self.generated_tokens, other.generated_tokens),
            (&mut self.proposed_tokens, other.proposed_tokens),
            (&mut self.accepted_tokens, other.accepted_tokens),
            (&mut self.preemptions, other.preemptions),
            (&mut self.finished, other.finished),
            (&mut self.cancelled, other.cancelled),
            (&mut self.failed, other.failed),
        ];
        pairs.into_iter().for_each(|(sum, more)| *sum += more);
    }

    /// Pages that sequences use.
    pub fn used_pages(&self) -> usize {
        self.pages - self.free_pages - self.cached_pages
    }
}
