use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{Arc, Mutex, PoisonError},
};

use lathe_kernels::PAGE_TOKENS;

use crate::{
    Error,
    prefix::{Entry, Link, Prefixes},
};

/// The pages of the KV cache, and the places for a sequence's recent page: who uses which, which
/// are free, and which are kept because their contents may be wanted again. The lowest free ones go
/// first, so that memory that was never needed is never touched.
#[derive(Clone, Debug)]
pub(crate) struct PagePool(Arc<Mutex<Pool>>);

#[derive(Debug)]
struct Pool {
    free: BinaryHeap<Reverse<u32>>,
    recent: BinaryHeap<Reverse<u32>>,
    /// Of each page, how many tables it is in.
    users: Vec<u32>,
    prefixes: Prefixes,
}

/// The pages of one sequence, in the order of its positions; given back when dropped.
#[derive(Debug)]
pub(crate) struct PageTable {
    pages: Vec<u32>,
    recent: Option<u32>,
    /// Of the first pages, how many have known contents, and the chain of these.
    known: usize,
    link: Link,
    pool: PagePool,
}

/// How many pages there are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PageCounts {
    pub(crate) all: usize,
    /// Without contents.
    pub(crate) free: usize,
    /// With known contents and without a user: given up when pages are needed.
    pub(crate) cached: usize,
}

impl PageCounts {
    /// What a sequence can have.
    pub(crate) fn available(self) -> usize {
        self.free + self.cached
    }
}

/// A page, or a recent one, whose contents a sequence needs at another place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) from: u32,
    pub(crate) to: u32,
}

impl PagePool {
    /// All of `pages` pages, for at most `recent` sequences at the same time.
    pub(crate) fn new(pages: usize, recent: usize) -> Self {
        let all = |count: usize| (0..count as u32).map(Reverse).collect();
        Self(Arc::new(Mutex::new(Pool {
            free: all(pages),
            recent: all(recent),
            users: vec![0; pages],
            prefixes: Prefixes::default(),
        })))
    }

    pub(crate) fn counts(&self) -> PageCounts {
        self.with(|pool| pool.counts())
    }

    /// A table without pages.
    pub(crate) fn table(&self) -> PageTable {
        let link = Link::default();
        PageTable { pages: Vec::new(), recent: None, known: 0, link, pool: self.clone() }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Pool) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Pool {
    fn counts(&self) -> PageCounts {
        PageCounts { all: self.users.len(), free: self.free.len(), cached: self.prefixes.idle() }
    }

    /// A page for one user; kept contents are given up only where nothing is free.
    fn take(&mut self) -> Option<u32> {
        let page = self.free.pop().map(|page| page.0).or_else(|| self.prefixes.evict())?;
        self.users[page as usize] = 1;
        Some(page)
    }

    fn share(&mut self, page: u32) {
        self.prefixes.wake(page);
        self.users[page as usize] += 1;
    }

    fn release(&mut self, page: u32) {
        let users = &mut self.users[page as usize];
        *users -= 1;
        if *users > 0 {
            return;
        }
        match self.prefixes.contains(page) {
            true => self.prefixes.rest(page),
            false => self.free.push(Reverse(page)),
        }
    }
}

impl PageTable {
    /// Makes room for `tokens` positions in all.
    ///
    /// # Errors
    /// [`Error::Pages`] where too few can be had, [`Error::Sequences`] where too many sequences
    /// have pages; nothing is taken then.
    pub(crate) fn reserve(&mut self, tokens: usize) -> Result<(), Error> {
        let needed = tokens.div_ceil(PAGE_TOKENS).saturating_sub(self.pages.len());
        if needed == 0 {
            return Ok(());
        }
        let Self { pages, recent, pool, .. } = self;
        pool.with(|pool| {
            let free = pool.counts().available();
            if needed > free {
                return Err(Error::Pages { needed, free });
            }
            seat(recent, pool)?;
            pages.extend((0..needed).filter_map(|_| pool.take()));
            Ok(())
        })
    }

    /// Makes the page of a position that is to be written this table's own. The first write to a
    /// page that others use needs a copy of it.
    ///
    /// # Errors
    /// As [`PageTable::reserve`].
    pub(crate) fn own(&mut self, position: usize) -> Result<Option<Copied>, Error> {
        let Some(page) = self.pages.get_mut(position / PAGE_TOKENS) else { return Ok(None) };
        self.pool.with(|pool| {
            if pool.users[*page as usize] == 1 {
                return Ok(None);
            }
            let to = pool.take().ok_or(Error::Pages { needed: 1, free: 0 })?;
            let from = std::mem::replace(page, to);
            pool.release(from);
            Ok(Some(Copied { from, to }))
        })
    }

    /// Takes over pages that hold what the sequence goes on with; `entries` are those after the
    /// table's pages. Gives the count of pages taken.
    pub(crate) fn adopt(&mut self, entries: impl Iterator<Item = Entry>) -> usize {
        if self.known < self.pages.len() {
            return 0;
        }
        let mut entries = entries.fuse();
        let Self { pages, recent, known, link, pool } = self;
        pool.with(|pool| {
            let before = *known;
            while let Some(page) = next_page(&mut entries) {
                let Some(found) = pool.prefixes.find(*link, &page) else { break };
                if seat(recent, pool).is_err() {
                    break;
                }
                pool.share(found.page);
                pages.push(found.page);
                *link = found.link;
                *known += 1;
            }
            *known - before
        })
    }

    /// Makes the full pages known to others. `entries` are those after [`PageTable::known`] pages,
    /// up to the last position that was written.
    pub(crate) fn publish(&mut self, entries: impl Iterator<Item = Entry>) {
        let mut entries = entries.fuse();
        let Self { pages, known, link, pool, .. } = self;
        pool.with(|pool| {
            while let Some(page) = next_page(&mut entries) {
                let Some(own) = pages.get_mut(*known) else { break };
                *link = match pool.prefixes.find(*link, &page) {
                    // Another sequence has computed the same meanwhile: one of the two is enough.
                    Some(found) => {
                        pool.share(found.page);
                        pool.release(std::mem::replace(own, found.page));
                        found.link
                    }
                    None => pool.prefixes.insert(*link, &page, *own),
                };
                *known += 1;
            }
        });
    }

    /// Of the first pages, how many have contents that others may use.
    pub(crate) fn known(&self) -> usize {
        self.known
    }

    /// The chain of these pages.
    pub(crate) fn link(&self) -> Link {
        self.link
    }

    /// A second table with the same pages, and the recent page that must be copied for it.
    ///
    /// # Errors
    /// [`Error::Sequences`] where too many sequences have pages.
    pub(crate) fn fork(&self) -> Result<(Self, Option<Copied>), Error> {
        let mut fork = self.pool.table();
        (fork.known, fork.link) = (self.known, self.link);
        let Self { pages, recent, pool, .. } = &mut fork;
        pool.with(|pool| {
            if self.recent.is_some() {
                seat(recent, pool)?;
            }
            self.pages.iter().for_each(|page| pool.share(*page));
            pages.clone_from(&self.pages);
            Ok::<(), Error>(())
        })?;
        let copied = self.recent.zip(fork.recent).map(|(from, to)| Copied { from, to });
        Ok((fork, copied))
    }

    pub(crate) fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// The place of the page that is not full yet; any before there is one.
    pub(crate) fn recent(&self) -> u32 {
        self.recent.unwrap_or_default()
    }

    /// Gives back all but the first `count` pages, none of which others know.
    pub(crate) fn truncate(&mut self, count: usize) {
        debug_assert!(self.known <= count);
        if count < self.pages.len() {
            let rest = self.pages.split_off(count);
            self.pool.with(|pool| rest.into_iter().rev().for_each(|page| pool.release(page)));
        }
    }

    /// Gives everything back.
    pub(crate) fn clear(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        let recent = self.recent.take();
        (self.known, self.link) = (0, Link::default());
        self.pool.with(|pool| {
            // The last first: the end of a chain is of no use without its beginning.
            pages.into_iter().rev().for_each(|page| pool.release(page));
            pool.recent.extend(recent.map(Reverse));
        });
    }
}

impl Drop for PageTable {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Gives a table its place for a recent page.
fn seat(recent: &mut Option<u32>, pool: &mut Pool) -> Result<(), Error> {
    if recent.is_none() {
        let Reverse(place) = pool.recent.pop().ok_or(Error::Sequences)?;
        *recent = Some(place);
    }
    Ok(())
}

/// As many entries as fill a page, if there are.
fn next_page(entries: &mut impl Iterator<Item = Entry>) -> Option<[Entry; PAGE_TOKENS]> {
    let mut page = [Entry { token: 0, rotation: 0 }; PAGE_TOKENS];
    for place in &mut page {
        *place = entries.next()?;
    }
    Some(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(count: usize) -> impl Iterator<Item = Entry> {
        (0..count as u32).map(|token| Entry { token, rotation: 0 })
    }

    fn free(pool: &PagePool) -> usize {
        pool.counts().free
    }

    #[test]
    fn pages_come_on_demand_and_go_back_when_dropped() {
        let pool = PagePool::new(4, 2);
        let mut table = pool.table();
        table.reserve(1).unwrap();
        table.reserve(PAGE_TOKENS).unwrap();
        assert_eq!(free(&pool), 3);
        table.reserve(PAGE_TOKENS + 1).unwrap();
        assert_eq!(table.pages(), [0, 1]);
        drop(table);
        assert_eq!(free(&pool), 4);
    }

    #[test]
    fn refuses_more_pages_than_there_are_and_takes_none() {
        let pool = PagePool::new(2, 2);
        let mut table = pool.table();
        let refused = table.reserve(3 * PAGE_TOKENS);
        assert!(matches!(refused, Err(Error::Pages { needed: 3, free: 2 })));
        assert_eq!(free(&pool), 2);
    }

    #[test]
    fn refuses_more_sequences_than_have_places_until_one_ends() {
        let pool = PagePool::new(4, 1);
        let (mut first, mut second) = (pool.table(), pool.table());
        first.reserve(1).unwrap();
        assert!(matches!(second.reserve(1), Err(Error::Sequences)));
        assert_eq!(free(&pool), 3);
        first.clear();
        second.reserve(1).unwrap();
        assert_eq!(second.recent(), 0);
    }

    #[test]
    fn published_pages_are_adopted_and_outlive_the_sequence_that_filled_them() {
        let pool = PagePool::new(4, 4);
        let mut first = pool.table();
        first.reserve(80).unwrap();
        first.publish(entries(80));
        assert_eq!(first.known(), 2);
        let mut second = pool.table();
        assert_eq!(second.adopt(entries(70)), 2);
        assert_eq!(second.pages(), [0, 1]);
        drop(first);
        assert_eq!(pool.counts(), PageCounts { all: 4, free: 2, cached: 0 });
        drop(second);
        assert_eq!(pool.counts(), PageCounts { all: 4, free: 2, cached: 2 });
        // The end of the chain goes before its beginning.
        let mut other = pool.table();
        other.reserve(3 * PAGE_TOKENS).unwrap();
        assert_eq!(pool.table().adopt(entries(64)), 1);
        other.reserve(4 * PAGE_TOKENS).unwrap();
        assert_eq!(pool.table().adopt(entries(64)), 0);
    }

    #[test]
    fn two_sequences_that_computed_the_same_page_end_up_with_one() {
        let pool = PagePool::new(4, 4);
        let (mut first, mut second) = (pool.table(), pool.table());
        first.reserve(40).unwrap();
        second.reserve(40).unwrap();
        first.publish(entries(40));
        second.publish(entries(40));
        assert_eq!((first.pages(), second.pages()), (&[0, 1][..], &[0, 3][..]));
        assert_eq!(free(&pool), 1);
    }

    #[test]
    fn pages_that_are_given_back_are_the_last_and_go_to_others() {
        let pool = PagePool::new(3, 2);
        let mut table = pool.table();
        table.reserve(70).unwrap();
        table.publish(entries(32));
        table.truncate(1);
        assert_eq!((table.pages(), free(&pool)), (&[0][..], 2));
        table.truncate(2);
        assert_eq!(table.pages(), [0]);
        pool.table().reserve(64).unwrap();
        drop(table);
        assert_eq!(pool.counts(), PageCounts { all: 3, free: 2, cached: 1 });
    }

    #[test]
    fn a_shared_page_is_copied_by_the_first_that_writes_and_kept_by_the_last() {
        let pool = PagePool::new(3, 2);
        let mut first = pool.table();
        first.reserve(40).unwrap();
        let (mut second, recent) = first.fork().unwrap();
        assert_eq!(recent, Some(Copied { from: 0, to: 1 }));
        assert_eq!(second.own(40).unwrap(), Some(Copied { from: 1, to: 2 }));
        assert_eq!(first.own(40).unwrap(), None);
        assert_eq!((first.pages(), second.pages()), (&[0, 1][..], &[0, 2][..]));
        assert!(matches!(first.fork(), Err(Error::Sequences)));
        drop(first);
        drop(second);
        assert_eq!(free(&pool), 3);
    }
}
