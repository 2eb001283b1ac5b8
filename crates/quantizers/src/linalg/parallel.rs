use std::{
    sync::{Mutex, PoisonError},
    thread,
};

/// Calls `f` on each of `items`, on up to `threads` threads that take the next one when they are
/// free; each thread brings a state of its own, made by `state`, which no result may depend on.
pub(crate) fn parallel<T: Send, S>(
    threads: usize,
    items: impl ExactSizeIterator<Item = T> + Send,
    state: impl Fn() -> S + Sync,
    f: impl Fn(&mut S, T) + Sync,
) {
    let threads = threads.clamp(1, items.len().max(1));
    if threads == 1 {
        let mut own = state();
        return items.for_each(|item| f(&mut own, item));
    }
    let queue = Mutex::new(items);
    let work = || {
        let mut own = state();
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(item) = next else { return };
            f(&mut own, item);
        }
    };
    thread::scope(|scope| {
        (1..threads).for_each(|_| {
            scope.spawn(work);
        });
        work();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once_at_any_thread_count() {
        for threads in [0, 1, 2, 5, 40] {
            let mut counts = [0; 17];
            parallel(threads, counts.iter_mut(), || (), |(), count| *count += 1);
            assert_eq!(counts, [1; 17], "{threads} threads");
        }
    }
}
