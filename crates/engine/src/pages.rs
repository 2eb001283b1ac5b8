use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{Arc, Mutex, PoisonError},
};

use lathe_kernels::PAGE_TOKENS;

use crate::Error;

/// Which pages of the KV cache are free, and which places for a sequence's recent page. The lowest
/// go first, so that memory that was never needed is never touched.
#[derive(Clone, Debug)]
pub(crate) struct FreePages(Arc<Mutex<Free>>);

#[derive(Debug)]
struct Free {
    pages: BinaryHeap<Reverse<u32>>,
    recent: BinaryHeap<Reverse<u32>>,
}

/// The pages of one sequence, in the order of its positions; given back when dropped.
#[derive(Debug)]
pub(crate) struct PageTable {
    pages: Vec<u32>,
    recent: Option<u32>,
    free: FreePages,
}

impl FreePages {
    /// All of `pages` pages, for at most `recent` sequences at the same time.
    pub(crate) fn new(pages: usize, recent: usize) -> Self {
        let all = |count: usize| (0..count as u32).map(Reverse).collect();
        Self(Arc::new(Mutex::new(Free { pages: all(pages), recent: all(recent) })))
    }

    #[cfg(test)]
    /// How many are free.
    pub(crate) fn count(&self) -> usize {
        self.with(|free| free.pages.len())
    }

    /// A table without pages.
    pub(crate) fn table(&self) -> PageTable {
        PageTable { pages: Vec::new(), recent: None, free: self.clone() }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Free) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl PageTable {
    /// Makes room for `tokens` positions in all.
    ///
    /// # Errors
    /// [`Error::Pages`] where too few are free, [`Error::Sequences`] where too many sequences have
    /// pages; nothing is taken then.
    pub(crate) fn reserve(&mut self, tokens: usize) -> Result<(), Error> {
        let needed = tokens.div_ceil(PAGE_TOKENS).saturating_sub(self.pages.len());
        self.free.with(|free| {
            if needed > free.pages.len() {
                return Err(Error::Pages { needed, free: free.pages.len() });
            }
            if self.recent.is_none() && needed > 0 {
                let Reverse(recent) = free.recent.pop().ok_or(Error::Sequences)?;
                self.recent = Some(recent);
            }
            self.pages.extend((0..needed).filter_map(|_| free.pages.pop()).map(|page| page.0));
            Ok(())
        })
    }

    pub(crate) fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// The place of the page that is not full yet; any before there is one.
    pub(crate) fn recent(&self) -> u32 {
        self.recent.unwrap_or_default()
    }

    /// Gives everything back.
    pub(crate) fn clear(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        let recent = self.recent.take();
        self.free.with(|free| {
            free.pages.extend(pages.into_iter().map(Reverse));
            free.recent.extend(recent.map(Reverse));
        });
    }
}

impl Drop for PageTable {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_on_demand_and_go_back_when_dropped() {
        let free = FreePages::new(4, 2);
        let mut table = free.table();
        table.reserve(1).unwrap();
        table.reserve(PAGE_TOKENS).unwrap();
        assert_eq!(free.count(), 3);
        table.reserve(PAGE_TOKENS + 1).unwrap();
        assert_eq!(table.pages(), [0, 1]);
        drop(table);
        assert_eq!(free.count(), 4);
    }

    #[test]
    fn refuses_more_pages_than_there_are_and_takes_none() {
        let free = FreePages::new(2, 2);
        let mut table = free.table();
        let refused = table.reserve(3 * PAGE_TOKENS);
        assert!(matches!(refused, Err(Error::Pages { needed: 3, free: 2 })));
        assert_eq!(free.count(), 2);
    }

    #[test]
    fn refuses_more_sequences_than_have_places_until_one_ends() {
        let free = FreePages::new(4, 1);
        let (mut first, mut second) = (free.table(), free.table());
        first.reserve(1).unwrap();
        assert!(matches!(second.reserve(1), Err(Error::Sequences)));
        assert_eq!(free.count(), 3);
        first.clear();
        second.reserve(1).unwrap();
        assert_eq!(second.recent(), 0);
    }
}
