use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use lathe_kernels::PAGE_TOKENS;

/// What a position of the cache holds, given all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub(crate) token: u32,
    /// How its key was rotated: see [`crate::executor::Executor::rotation`].
    pub(crate) rotation: u32,
}

/// The full pages whose contents are known, so that another sequence that begins alike can use
/// them.
///
/// A page is known by its own entries and by the page before it, which is known likewise: a chain
/// back to the first token. The map's hash only finds a page; what is compared is the chain, so two
/// prefixes with one hash are never taken for each other.
#[derive(Debug, Default)]
pub(crate) struct Prefixes {
    known: HashMap<Arc<Key>, Known>,
    /// The same by page.
    keys: HashMap<u32, (Arc<Key>, Link)>,
    /// Known pages that no sequence uses, the least recently used first.
    idle: BTreeMap<u64, u32>,
    /// When each of those was last used.
    stamps: HashMap<u32, u64>,
    clock: u64,
}

/// A chain of pages: no two different ones ever have the same number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Link(u64);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    before: Link,
    entries: [Entry; PAGE_TOKENS],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) page: u32,
    pub(crate) link: Link,
}

impl Prefixes {
    /// The page that continues a chain with these entries.
    pub(crate) fn find(&self, before: Link, entries: &[Entry; PAGE_TOKENS]) -> Option<Known> {
        self.known.get(&Key { before, entries: *entries }).copied()
    }

    /// Makes a page known that is not yet, nor another with the same contents.
    pub(crate) fn insert(
        &mut self,
        before: Link,
        entries: &[Entry; PAGE_TOKENS],
        page: u32,
    ) -> Link {
        self.clock += 1;
        // Never given twice, and never the beginning's 0.
        let link = Link(self.clock);
        let key = Arc::new(Key { before, entries: *entries });
        self.known.insert(Arc::clone(&key), Known { page, link });
        self.keys.insert(page, (key, link));
        link
    }

    /// Whether a page's contents are known.
    pub(crate) fn contains(&self, page: u32) -> bool {
        self.keys.contains_key(&page)
    }

    /// A known page that no sequence uses any longer.
    pub(crate) fn rest(&mut self, page: u32) {
        self.clock += 1;
        self.idle.insert(self.clock, page);
        self.stamps.insert(page, self.clock);
    }

    /// A known page that a sequence uses again.
    pub(crate) fn wake(&mut self, page: u32) {
        if let Some(stamp) = self.stamps.remove(&page) {
            self.idle.remove(&stamp);
        }
    }

    /// Known pages that no sequence uses.
    pub(crate) fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Gives up the page that was not used for the longest time. Sequences let go of their last
    /// page first, so that a chain is lost from its end.
    pub(crate) fn evict(&mut self) -> Option<u32> {
        let (_, page) = self.idle.pop_first()?;
        self.stamps.remove(&page);
        if let Some((key, _)) = self.keys.remove(&page) {
            self.known.remove(&key);
        }
        Some(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(first: u32) -> [Entry; PAGE_TOKENS] {
        std::array::from_fn(|i| Entry { token: first + i as u32, rotation: 0 })
    }

    #[test]
    fn a_page_is_found_only_after_the_pages_it_was_computed_after() {
        let mut prefixes = Prefixes::default();
        let first = prefixes.insert(Link::default(), &entries(0), 4);
        let second = prefixes.insert(first, &entries(7), 2);
        assert_eq!(prefixes.find(first, &entries(7)), Some(Known { page: 2, link: second }));
        assert_eq!(prefixes.find(Link::default(), &entries(7)), None);
        assert_eq!(prefixes.find(second, &entries(7)), None);
        let mut turned = entries(0);
        turned[31].rotation = 1;
        assert_eq!(prefixes.find(Link::default(), &turned), None);
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_is_not_found_again() {
        let mut prefixes = Prefixes::default();
        for page in 0..3 {
            prefixes.insert(Link::default(), &entries(page), page);
            prefixes.rest(page);
        }
        prefixes.wake(0);
        prefixes.rest(0);
        assert_eq!(prefixes.evict(), Some(1));
        assert_eq!(prefixes.find(Link::default(), &entries(1)), None);
        prefixes.wake(2);
        assert_eq!((prefixes.idle(), prefixes.evict(), prefixes.evict()), (1, Some(0), None));
        assert!(prefixes.contains(2) && !prefixes.contains(0));
    }

    #[test]
    fn a_chain_whose_beginning_was_given_up_is_not_found_after_another_beginning() {
        let mut prefixes = Prefixes::default();
        let first = prefixes.insert(Link::default(), &entries(0), 0);
        prefixes.insert(first, &entries(1), 1);
        prefixes.rest(0);
        prefixes.evict();
        let again = prefixes.insert(Link::default(), &entries(0), 0);
        assert_eq!(prefixes.find(again, &entries(1)), None);
    }
}
