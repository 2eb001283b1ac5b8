use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{Arc, Mutex, PoisonError},
};

use lathe_kernels::{PAGE_TOKENS, Slot};

use crate::Error;

/// Which pages of the KV cache are free. The lowest go first, so that memory that was never
/// needed is never touched.
#[derive(Clone, Debug)]
pub(crate) struct FreePages(Arc<Mutex<BinaryHeap<Reverse<u32>>>>);

/// The pages of one sequence, in the order of its positions; given back when dropped.
#[derive(Debug)]
pub(crate) struct PageTable {
    pages: Vec<u32>,
    free: FreePages,
}

impl FreePages {
    /// All of `count` pages.
    pub(crate) fn new(count: usize) -> Self {
        Self(Arc::new(Mutex::new((0..count as u32).map(Reverse).collect())))
    }

    #[cfg(test)]
    /// How many are free.
    pub(crate) fn count(&self) -> usize {
        self.with(|free| free.len())
    }

    /// A table without pages.
    pub(crate) fn table(&self) -> PageTable {
        PageTable { pages: Vec::new(), free: self.clone() }
    }

    fn with<T>(&self, f: impl FnOnce(&mut BinaryHeap<Reverse<u32>>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl PageTable {
    /// Makes room for `tokens` positions in all.
    ///
    /// # Errors
    /// [`Error::Pages`] where too few are free; nothing is taken then.
    pub(crate) fn reserve(&mut self, tokens: usize) -> Result<(), Error> {
        let needed = tokens.div_ceil(PAGE_TOKENS).saturating_sub(self.pages.len());
        self.free.with(|free| {
            if needed > free.len() {
                return Err(Error::Pages { needed, free: free.len() });
            }
            self.pages.extend((0..needed).filter_map(|_| free.pop()).map(|page| page.0));
            Ok(())
        })
    }

    /// Where the keys and values of a position lie. The position must be within what was reserved.
    pub(crate) fn slot(&self, position: usize) -> Slot {
        Slot { page: self.pages[position / PAGE_TOKENS], offset: position % PAGE_TOKENS }
    }

    pub(crate) fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Gives all pages back.
    pub(crate) fn clear(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        self.free.with(|free| free.extend(pages.into_iter().map(Reverse)));
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
        let free = FreePages::new(4);
        let mut table = free.table();
        table.reserve(1).unwrap();
        table.reserve(PAGE_TOKENS).unwrap();
        assert_eq!(free.count(), 3);
        table.reserve(PAGE_TOKENS + 1).unwrap();
        assert_eq!(table.pages(), [0, 1]);
        assert_eq!(table.slot(PAGE_TOKENS + 3), Slot { page: 1, offset: 3 });
        drop(table);
        assert_eq!(free.count(), 4);
    }

    #[test]
    fn refuses_more_pages_than_there_are_and_takes_none() {
        let free = FreePages::new(2);
        let mut table = free.table();
        let refused = table.reserve(3 * PAGE_TOKENS);
        assert!(matches!(refused, Err(Error::Pages { needed: 3, free: 2 })));
        assert_eq!(free.count(), 2);
    }
}
