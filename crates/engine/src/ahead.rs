//! Weights fetched before they are asked for, several at once: taking apart what a tool has packed
//! takes longer than what is done with it then.

use std::{
    sync::mpsc::{Receiver, sync_channel},
    thread::Scope,
};

use lathe_files::Checkpoint;
use lathe_formats::Blocks;
use lathe_models::{Error, Kind, Located, Model, Weight};

/// What weights inside layers that nobody has asked for yet may take, at a byte a number.
const BYTES: usize = 64 << 20;

/// A model's weights in their order.
pub(crate) struct Ahead<'a> {
    weights: std::slice::Iter<'a, Located>,
    /// Each gives every so many-th weight.
    workers: Vec<Receiver<Result<Blocks, Error>>>,
    given: usize,
}

impl<'a> Ahead<'a> {
    /// Begins to fetch, by at most so many threads.
    pub(crate) fn start<'scope>(
        scope: &'scope Scope<'scope, 'a>,
        model: &'a Model,
        checkpoint: &'a Checkpoint,
        threads: usize,
    ) -> Self {
        let linears = model.weights.iter().filter(|located| located.weight.kind == Kind::Linear);
        let largest = linears.map(|located| located.weight.len()).max();
        let count = (BYTES / largest.unwrap_or(1).max(1)).clamp(1, threads.max(1));
        let worker = |index| {
            // One that is done waits until it is taken.
            let (to, from) = sync_channel(0);
            scope.spawn(move || {
                for located in model.weights.iter().skip(index).step_by(count) {
                    if to.send(model.load(checkpoint, located)).is_err() {
                        return;
                    }
                }
            });
            from
        };
        let workers = (0..count).map(worker).collect();
        Self { weights: model.weights.iter(), workers, given: 0 }
    }

    /// The next weight, if it is this one.
    pub(crate) fn next(&mut self, wanted: &Weight) -> Option<Result<Blocks, Error>> {
        self.weights.as_slice().first().filter(|located| located.weight == *wanted)?;
        self.weights.next();
        let worker = &self.workers[self.given % self.workers.len()];
        self.given += 1;
        worker.recv().ok()
    }
}
