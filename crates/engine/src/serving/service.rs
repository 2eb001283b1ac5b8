use std::{
    collections::HashMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lathe_api::{Engine, Event, Finish, Flow, Info, Request, Usage};
use lathe_grammar::Compiled;

use crate::{
    Error, Native,
    serving::{
        limits::Limits,
        response::Response,
        scheduler::{Rules, Scheduler, Step},
        snapshot::Snapshot,
        submission::{Submission, Update},
    },
};

/// A loaded model at everybody's service: any thread submits requests at any time, and each hears
/// of its own through a [`Response`].
///
/// One thread of its own runs the scheduler. A request that fails, or panics, ends alone. Loaded for
/// several sequences ([`crate::Options::batch`]) and with room for all their tokens
/// ([`crate::Options::cache`]), the model serves as many at a time; the others wait.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use lathe_engine::{Error, Native, serving::{Limits, Service, Submission, Update}};
/// # fn serve(native: Arc<Native>, request: lathe_api::Request) -> Result<(), Error> {
/// let service = Service::start(native, Limits::default())?;
/// let submission = Submission { n: 2, client: Arc::from("someone"), ..request.into() };
/// for update in service.submit(submission)? {
///     match update {
///         Update::Token { text, piece, .. } => println!("{text}: {piece}"),
///         Update::Done(served) => println!("{} tokens", served?.generated_tokens),
///         _ => {}
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Service {
    native: Arc<Native>,
    limits: Limits,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// How a service ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Takes on nothing more, and ends when all that it took on has.
    Drain,
    /// Cancels everything.
    Stop,
}

/// What the service's thread and its callers share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Inbox {
    next: u64,
    new: Vec<New>,
    cancelled: Vec<u64>,
    ending: Option<Ending>,
    refused: u64,
    /// Of the scheduler after its last step, with what came since counted as waiting.
    snapshot: Snapshot,
}

#[derive(Debug)]
struct New {
    id: u64,
    submission: Submission,
    grammar: Option<Arc<Compiled>>,
    updates: Sender<Update>,
}

/// How long to wait for others to give back pages before looking again.
const STALL: Duration = Duration::from_millis(2);

impl Service {
    /// Starts serving.
    ///
    /// # Errors
    /// [`Error::Request`] for limits under which nothing could run; no thread to be had.
    pub fn start(native: Arc<Native>, limits: Limits) -> Result<Self, Error> {
        if limits.waiting == 0 || limits.waiting_tokens == 0 || limits.n == 0 {
            let what = "a service must allow at least one request, one token and one text";
            return Err(Error::Request(what.into()));
        }
        let shared = Arc::new(Shared::default());
        let rules = rules(&native, &limits);
        let worker = {
            let (native, shared) = (Arc::clone(&native), Arc::clone(&shared));
            move || serve(&native, rules, &shared)
        };
        let thread = thread::Builder::new().name("lathe-service".to_owned()).spawn(worker);
        let thread = thread.map_err(|error| Error::Broken {
            why: format!("the service's thread cannot be started: {error}"),
        })?;
        Ok(Self { native, limits, shared, thread: Some(thread) })
    }

    /// Takes on a request. Whatever cannot be run, or not now, is refused here.
    ///
    /// # Errors
    /// [`Error::Request`], [`Error::Token`], [`Error::Context`] and [`Error::Grammar`] for what
    /// could never run;
    /// [`Error::QueueFull`] and [`Error::QueueTokens`] for what may be tried again later;
    /// [`Error::Closed`].
    pub fn submit(&self, submission: Submission) -> Result<Response, Error> {
        let submitted = self
            .check(&submission)
            .and_then(|()| self.native.grammar(&submission.request))
            .and_then(|grammar| self.push(submission, grammar));
        if submitted.is_err() {
            self.shared.lock().refused += 1;
        }
        submitted
    }

    fn check(&self, submission: &Submission) -> Result<(), Error> {
        submission.check(&self.native.executor, self.native.tokenizer().map(Arc::as_ref))?;
        let Limits { n, top_log_probs, .. } = self.limits;
        if submission.n > n {
            return Err(Error::Request(format!("n is {}; it may be {n}", submission.n)));
        }
        let of_tokens = submission.log_probs.map(|wanted| wanted.top);
        match of_tokens.max(submission.prompt_log_probs) {
            Some(top) if top > top_log_probs => Err(Error::Request(format!(
                "{top} top log probabilities are asked for; there may be {top_log_probs}"
            ))),
            _ => Ok(()),
        }
    }

    fn push(
        &self,
        submission: Submission,
        grammar: Option<Arc<Compiled>>,
    ) -> Result<Response, Error> {
        let mut inbox = self.shared.lock();
        if inbox.ending.is_some() {
            return Err(Error::Closed);
        }
        let (waiting, most) = (inbox.snapshot.waiting, self.limits.waiting);
        if waiting >= most {
            return Err(Error::QueueFull { waiting, most });
        }
        let most = self.limits.waiting_tokens;
        let waiting = inbox.snapshot.waiting_tokens + submission.request.prompt.len();
        if waiting > most {
            return Err(Error::QueueTokens { waiting, most });
        }
        inbox.snapshot.waiting += 1;
        inbox.snapshot.waiting_tokens = waiting;
        let id = inbox.next;
        inbox.next += 1;
        let (updates, receiver) = channel();
        inbox.new.push(New { id, submission, grammar, updates });
        drop(inbox);
        self.shared.wake.notify_one();
        Ok(Response::new(id, Arc::clone(&self.shared), receiver))
    }

    /// What it is doing, as of its last step; pages are those of this moment, and count what others
    /// use of the same model. Costs no more than a copy.
    pub fn snapshot(&self) -> Snapshot {
        let pages = self.native.executor.pages.counts();
        let inbox = self.shared.lock();
        Snapshot { refused: inbox.refused, ..inbox.snapshot }.with_pages(pages)
    }

    /// The model that it serves.
    pub fn native(&self) -> &Arc<Native> {
        &self.native
    }

    /// Ends it and waits until it has.
    pub fn end(mut self, how: Ending) {
        self.close(how);
    }

    fn close(&mut self, how: Ending) {
        self.shared.lock().ending = Some(how);
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // It catches its panics; had it one outside, there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

/// A request a call, from any number of threads: all share each pass over the weights, in the order
/// in which they came.
impl Engine for Service {
    fn info(&self) -> &Info {
        self.native.info()
    }

    fn generate(
        &self,
        request: &Request,
        on: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Usage, lathe_api::Error> {
        let mut response = self.submit(request.clone().into())?;
        let mut usage = Usage {
            prompt_tokens: request.prompt.len(),
            generated_tokens: 0,
            finish: Finish::Cancelled,
        };
        for update in &mut response {
            let flow = match &update {
                Update::Prefilled { tokens, .. } => on(Event::Prefilled { tokens: *tokens }),
                Update::Token { id, piece, .. } => on(Event::Token { id: *id, text: piece }),
                Update::Finished { finish, generated, .. } => {
                    (usage.finish, usage.generated_tokens) = (*finish, *generated);
                    Flow::Continue
                }
                Update::Done(_) => Flow::Continue,
            };
            if let Update::Done(Err(error)) = update {
                return Err(error.into());
            }
            if flow == Flow::Stop {
                // Dropping the response cancels the rest.
                return Ok(Usage { finish: Finish::Cancelled, ..usage });
            }
        }
        Ok(usage)
    }
}

impl Drop for Service {
    /// As [`Ending::Stop`].
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.close(Ending::Stop);
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn cancel(&self, id: u64) {
        self.lock().cancelled.push(id);
        self.wake.notify_one();
    }

    /// What came since the last step; where there is nothing else to do, waits for something.
    fn take(&self, wait: Wait) -> (Vec<New>, Vec<u64>, Option<Ending>) {
        let mut inbox = self.lock();
        let quiet = |inbox: &mut Inbox| inbox.new.is_empty() && inbox.cancelled.is_empty();
        match wait {
            Wait::No => {}
            Wait::Briefly => {
                let waited = self.wake.wait_timeout_while(inbox, STALL, |inbox| {
                    quiet(inbox) && inbox.ending != Some(Ending::Stop)
                });
                inbox = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            Wait::ForMore => {
                let waited = self.wake.wait_while(inbox, |i| quiet(i) && i.ending.is_none());
                inbox = waited.unwrap_or_else(PoisonError::into_inner);
            }
        }
        let inbox = &mut *inbox;
        (std::mem::take(&mut inbox.new), std::mem::take(&mut inbox.cancelled), inbox.ending)
    }

    /// Lets callers see what the scheduler is doing.
    fn publish(&self, snapshot: Snapshot) {
        let mut inbox = self.lock();
        let new = inbox.new.iter().map(|new| new.submission.request.prompt.len());
        let (waiting, tokens) = (new.len(), new.sum::<usize>());
        inbox.snapshot = snapshot;
        inbox.snapshot.waiting += waiting;
        inbox.snapshot.waiting_tokens += tokens;
    }
}

/// How a service's thread waits for more.
#[derive(Clone, Copy)]
enum Wait {
    No,
    Briefly,
    ForMore,
}

fn rules(native: &Native, limits: &Limits) -> Rules {
    Rules {
        sequences: limits.sequences.unwrap_or(native.batch).clamp(1, native.batch),
        step_tokens: limits.step_tokens.unwrap_or(native.executor.chunk).max(1),
        share_prefixes: limits.share_prefixes,
        reserve: false,
    }
}

/// The service's thread.
fn serve(native: &Native, rules: Rules, shared: &Shared) {
    let tokenizer = native.tokenizer().map(Arc::as_ref);
    let scheduler = Scheduler::new(&native.executor, tokenizer, rules);
    let mut scheduler = scheduler.with_speculator(native.speculator());
    let mut open: HashMap<u64, Sender<Update>> = HashMap::new();
    let mut wait = Wait::ForMore;
    loop {
        let (new, cancelled, ending) = shared.take(wait);
        let stopping = ending == Some(Ending::Stop);
        let mut named = Vec::with_capacity(new.len());
        for New { id, submission, grammar, updates } in new {
            open.insert(id, updates);
            named.push((id, submission, grammar));
        }
        let worked = catch_unwind(AssertUnwindSafe(|| {
            for (id, submission, grammar) in named {
                if let Err(error) = scheduler.submit(id, submission, grammar) {
                    tell(&mut open, id, Update::Done(Err(error)));
                }
            }
            let all: Vec<u64> = if stopping { open.keys().copied().collect() } else { cancelled };
            for id in all {
                scheduler.cancel(id, &mut |id, update| tell(&mut open, id, update));
            }
            scheduler.step(&mut |id, update| tell(&mut open, id, update))
        }));
        wait = match worked {
            Ok(Step::Idle) => Wait::ForMore,
            Ok(Step::Worked) => Wait::No,
            Ok(Step::Stalled(_)) => Wait::Briefly,
            Err(panic) => {
                // What was under way cannot be told apart; a new scheduler has all pages again.
                scheduler = scheduler.renewed();
                for (_, updates) in open.drain() {
                    let _ = updates.send(Update::Done(Err(Error::panicked(&*panic))));
                }
                Wait::No
            }
        };
        shared.publish(scheduler.snapshot());
        if ending.is_some() && scheduler.is_idle() {
            break;
        }
    }
}

/// Passes an update on. Nobody there to hear it ends the request.
fn tell(open: &mut HashMap<u64, Sender<Update>>, id: u64, update: Update) -> Flow {
    let done = matches!(update, Update::Done(_));
    let heard = open.get(&id).is_some_and(|updates| updates.send(update).is_ok());
    if done {
        open.remove(&id);
    }
    if heard { Flow::Continue } else { Flow::Stop }
}
