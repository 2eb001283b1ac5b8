use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

/// What waits: by priority, then by what its client was served so far, then by age.
///
/// Each client has a counter of the tokens that it was served, and the one with the least goes
/// first (the virtual token counter of Sheng et al. 2024, arXiv 2401.00588). A client that comes
/// back after a pause begins at the least counter of those present, so that nobody saves up claims.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    levels: BTreeMap<Reverse<i32>, HashMap<Arc<str>, VecDeque<T>>>,
    clients: HashMap<Arc<str>, Client>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Client {
    served: u64,
    /// Requests that wait or run.
    present: usize,
}

/// What the order of the queue goes by.
pub(crate) trait Waits {
    fn client(&self) -> &Arc<str>;
    fn priority(&self) -> i32;
    /// The lower goes first.
    fn age(&self) -> (u64, usize);
}

/// Clients that are remembered while they have no requests.
const REMEMBERED: usize = 4096;

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { levels: BTreeMap::new(), clients: HashMap::new() }
    }
}

impl<T: Waits> Queue<T> {
    /// A client has one more request.
    pub(crate) fn enter(&mut self, client: &Arc<str>) {
        let present = self.clients.values().filter(|client| client.present > 0);
        let least = present.map(|client| client.served).min().unwrap_or(0);
        let client = self.clients.entry(Arc::clone(client)).or_default();
        if client.present == 0 {
            client.served = client.served.max(least);
        }
        client.present += 1;
    }

    /// A request of a client has ended.
    pub(crate) fn leave(&mut self, client: &str) {
        if let Some(client) = self.clients.get_mut(client) {
            client.present -= 1;
        }
        if self.clients.len() > REMEMBERED {
            self.clients.retain(|_, client| client.present > 0);
        }
    }

    /// A client was served so many tokens.
    pub(crate) fn charge(&mut self, client: &str, tokens: usize) {
        if let Some(client) = self.clients.get_mut(client) {
            client.served += tokens as u64;
        }
    }

    /// Joins its client's row by its age: what has waited before goes before the younger.
    pub(crate) fn push(&mut self, item: T) {
        let level = self.levels.entry(Reverse(item.priority())).or_default();
        let row = level.entry(Arc::clone(item.client())).or_default();
        let at = row.partition_point(|other| other.age() < item.age());
        row.insert(at, item);
    }

    /// Takes what goes first.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let mut level = self.levels.first_entry()?;
        let served = |client: &Arc<str>| self.clients.get(client).map_or(0, |c| c.served);
        let age = |row: &VecDeque<T>| row.front().map(T::age);
        let rows = level.get().iter();
        let (client, _) = rows.min_by_key(|(client, row)| (served(client), age(row)))?;
        let client = Arc::clone(client);
        let row = level.get_mut().get_mut(&client)?;
        let item = row.pop_front();
        if row.is_empty() {
            level.get_mut().remove(&client);
        }
        if level.get().is_empty() {
            level.remove();
        }
        item
    }

    /// Takes out all that `gone` says.
    pub(crate) fn remove(&mut self, gone: impl Fn(&T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        self.levels.retain(|_, level| {
            level.retain(|_, row| {
                while let Some(at) = row.iter().position(&gone) {
                    removed.extend(row.remove(at));
                }
                !row.is_empty()
            });
            !level.is_empty()
        });
        removed
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.levels.values().flat_map(HashMap::values).flatten()
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Item(Arc<str>, i32, u64);

    impl Waits for Item {
        fn client(&self) -> &Arc<str> {
            &self.0
        }
        fn priority(&self) -> i32 {
            self.1
        }
        fn age(&self) -> (u64, usize) {
            (self.2, 0)
        }
    }

    fn queue(items: &[(&str, i32, u64)]) -> Queue<Item> {
        let mut queue = Queue::default();
        for (client, priority, age) in items {
            queue.enter(&Arc::from(*client));
            queue.push(Item(Arc::from(*client), *priority, *age));
        }
        queue
    }

    fn ages(queue: &mut Queue<Item>, cost: usize) -> Vec<u64> {
        let mut ages = Vec::new();
        while let Some(item) = queue.pop() {
            queue.charge(&item.0, cost);
            ages.push(item.2);
        }
        assert!(queue.is_empty());
        ages
    }

    #[test]
    fn one_client_is_served_in_order_and_higher_priorities_first() {
        let mut queue = queue(&[("a", 0, 1), ("a", 0, 2), ("a", 5, 3), ("a", -1, 0)]);
        assert_eq!(ages(&mut queue, 10), [3, 1, 2, 0]);
    }

    #[test]
    fn a_client_with_few_requests_does_not_wait_for_all_of_a_busy_one() {
        let heavy = (0..5).map(|age| ("heavy", 0, age));
        let all: Vec<_> = heavy.chain([("light", 0, 5), ("light", 0, 6)]).collect();
        assert_eq!(ages(&mut queue(&all), 10), [0, 5, 1, 6, 2, 3, 4]);
    }

    #[test]
    fn a_client_that_was_away_has_saved_up_nothing() {
        let mut queue = queue(&[("a", 0, 1), ("a", 0, 2)]);
        queue.charge("a", 1000);
        queue.enter(&Arc::from("b"));
        for age in 3..6 {
            queue.push(Item(Arc::from("b"), 0, age));
        }
        assert_eq!(ages(&mut queue, 10), [1, 3, 2, 4, 5]);
    }

    #[test]
    fn what_comes_back_takes_its_old_place() {
        let mut queue = queue(&[("a", 0, 1), ("a", 0, 2), ("a", 0, 3)]);
        let first = queue.pop().unwrap();
        let second = queue.pop().unwrap();
        queue.push(first);
        queue.push(second);
        queue.remove(|item| item.2 == 3);
        assert_eq!(queue.iter().count(), 2);
        assert_eq!(ages(&mut queue, 0), [1, 2]);
    }
}
