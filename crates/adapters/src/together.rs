//! Several requests at once, for engines that are asked one request a connection.

use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use lathe_api::{Error, Event, Flow, Request, Usage};

/// An [`Event`] that owns its text.
enum Heard {
    Prefilled(usize),
    Token(u32, String),
}

/// One request from start to end.
pub(crate) type One<'a> =
    dyn Fn(&Request, &mut dyn FnMut(Event<'_>) -> Flow) -> Result<Usage, Error> + Sync + 'a;

/// Sends every request from a thread of its own, all at the same moment; `on` is called on the
/// caller's thread.
///
/// # Errors
/// The first request's that failed; the others are given up.
pub(crate) fn run(
    requests: &[Request],
    one: &One<'_>,
    on: &mut dyn FnMut(usize, Event<'_>) -> Flow,
) -> Result<Vec<Usage>, Error> {
    let barrier = Barrier::new(requests.len());
    let stops: Vec<AtomicBool> = requests.iter().map(|_| AtomicBool::new(false)).collect();
    let (sender, heard) = mpsc::channel();
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for (index, request) in requests.iter().enumerate() {
            let (sender, stops, barrier) = (sender.clone(), &stops, &barrier);
            let stop = &stops[index];
            workers.push(scope.spawn(move || {
                barrier.wait();
                let ended = one(request, &mut |event| {
                    let event = match event {
                        Event::Prefilled { tokens } => Heard::Prefilled(tokens),
                        Event::Token { id, text } => Heard::Token(id, text.to_owned()),
                    };
                    let gone = sender.send((index, event)).is_err();
                    if gone || stop.load(Ordering::Relaxed) { Flow::Stop } else { Flow::Continue }
                });
                if ended.is_err() {
                    stops.iter().for_each(|stop| stop.store(true, Ordering::Relaxed));
                }
                ended
            }));
        }
        drop(sender);
        for (index, event) in heard {
            let event = match &event {
                Heard::Prefilled(tokens) => Event::Prefilled { tokens: *tokens },
                Heard::Token(id, text) => Event::Token { id: *id, text },
            };
            if !stops[index].load(Ordering::Relaxed) && on(index, event) == Flow::Stop {
                stops[index].store(true, Ordering::Relaxed);
            }
        }
        let ended = workers.into_iter().map(|worker| worker.join());
        ended
            .map(|one| {
                one.unwrap_or_else(|_| {
                    let (engine, why) = ("a request".to_owned(), "its thread panicked".to_owned());
                    Err(Error::Failed { engine, why })
                })
            })
            .collect()
    })
}
