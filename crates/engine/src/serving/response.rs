use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use crate::{
    Error,
    serving::{service::Shared, submission::Update},
};

/// What comes back for a submission, update by update; [`Update::Done`] is the last.
///
/// Dropping it cancels what has not ended. Updates wait here until they are read: at most one for
/// each token that was asked for.
#[derive(Debug)]
pub struct Response {
    id: u64,
    shared: Arc<Shared>,
    updates: Receiver<Update>,
    done: bool,
}

impl Response {
    pub(super) fn new(id: u64, shared: Arc<Shared>, updates: Receiver<Update>) -> Self {
        Self { id, shared, updates, done: false }
    }

    /// The number of the submission: they grow in the order of their arrival.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Ends it within one step. Its texts are reported as cancelled, then it is done.
    pub fn cancel(&self) {
        self.shared.cancel(self.id);
    }

    /// The next update, if one comes in time.
    ///
    /// # Errors
    /// That none came; after [`Update::Done`] none ever does.
    pub fn next_within(&mut self, time: Duration) -> Result<Update, RecvTimeoutError> {
        if self.done {
            return Err(RecvTimeoutError::Disconnected);
        }
        match self.updates.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Err(RecvTimeoutError::Timeout),
            Err(RecvTimeoutError::Disconnected) => Ok(self.lost()),
            Ok(update) => Ok(self.seen(update)),
        }
    }

    fn seen(&mut self, update: Update) -> Update {
        self.done = matches!(update, Update::Done(_));
        update
    }

    /// The service ended before it could say anything.
    fn lost(&mut self) -> Update {
        self.done = true;
        Update::Done(Err(Error::Closed))
    }
}

impl Iterator for Response {
    type Item = Update;

    /// Waits for the next update; nothing comes after [`Update::Done`].
    fn next(&mut self) -> Option<Update> {
        if self.done {
            return None;
        }
        Some(match self.updates.recv() {
            Ok(update) => self.seen(update),
            Err(_) => self.lost(),
        })
    }
}

impl Drop for Response {
    fn drop(&mut self) {
        if !self.done {
            self.cancel();
        }
    }
}
