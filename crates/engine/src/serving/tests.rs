//! What only an eye on each step can see.

use std::{path::Path, sync::Arc};

use lathe_api::{Flow, Request, Sampling};
use lathe_files::Checkpoint;

use super::{
    Ending, Limits, LogProbs, Rules, Scheduler, Service, Step, Submission, Update,
    active::{BREAKS, PANICS},
};
use crate::{Error, Native, Options, cpu::Cpu};

fn native(options: Options) -> Native {
    of_kind("llama", options)
}

fn of_kind(name: &str, options: Options) -> Native {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs").join(name);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    Native::load(&checkpoint, None, &Options { context: Some(64), ..options }).unwrap()
}

fn rules(step_tokens: usize) -> Rules {
    Rules { sequences: 4, step_tokens, share_prefixes: true, reserve: false }
}

fn submission(length: usize, max_tokens: usize) -> Submission {
    Submission::from(Request {
        prompt: (0..length).map(|i| (3 + i * 7 % 150) as u32).collect(),
        max_tokens,
        sampling: Sampling::default(),
        stop_tokens: vec![],
        stop_strings: vec![],
        ignore_stop: true,
        grammar: None,
    })
}

fn of(client: &str, length: usize, max_tokens: usize) -> Submission {
    Submission { client: Arc::from(client), ..submission(length, max_tokens) }
}

/// What each of two requests was told in a step: tokens of the first, whether the second has its
/// prompt.
fn step(scheduler: &mut Scheduler<'_, Cpu>) -> (usize, bool) {
    let (mut tokens, mut prefilled) = (0, false);
    let worked = scheduler.step(&mut |id, update| {
        match update {
            Update::Token { .. } if id == 0 => tokens += 1,
            Update::Prefilled { .. } if id == 1 => prefilled = true,
            _ => {}
        }
        Flow::Continue
    });
    assert!(matches!(worked, Step::Worked));
    (tokens, prefilled)
}

#[test]
fn a_long_prompt_never_holds_up_what_decodes() {
    let native = native(Options { batch: 4, ..Options::default() });
    let mut scheduler = Scheduler::new(&native.executor, None, rules(8));
    scheduler.submit(0, submission(3, 40), None).unwrap();
    assert_eq!(step(&mut scheduler), (1, false));
    scheduler.submit(1, submission(50, 1), None).unwrap();
    // Seven of eight tokens are left for the prompt in each step.
    let mut steps = 0;
    loop {
        let (tokens, prefilled) = step(&mut scheduler);
        assert_eq!(tokens, 1);
        steps += 1;
        if prefilled {
            break;
        }
    }
    assert_eq!(steps, 50usize.div_ceil(7));
    assert_eq!(scheduler.snapshot().prefill_tokens, 53);
}

#[test]
fn pages_are_free_as_soon_as_a_request_is_cancelled() {
    let native = native(Options { batch: 4, ..Options::default() });
    let mut scheduler = Scheduler::new(&native.executor, None, rules(256));
    scheduler.submit(0, submission(20, 40), None).unwrap();
    step(&mut scheduler);
    assert_eq!(scheduler.snapshot().used_pages(), 1);
    let mut done = false;
    scheduler.cancel(0, &mut |_, update| {
        done |= matches!(update, Update::Done(Ok(_)));
        Flow::Continue
    });
    assert!(done && scheduler.is_idle());
    assert_eq!(scheduler.snapshot().free_pages, native.executor.pages.counts().all);
    assert!(matches!(scheduler.step(&mut |_, _| Flow::Continue), Step::Idle));
}

#[test]
fn pages_are_taken_as_they_are_needed() {
    let native = native(Options { batch: 4, ..Options::default() });
    let mut scheduler = Scheduler::new(&native.executor, None, rules(256));
    scheduler.submit(0, submission(30, 30), None).unwrap();
    let mut used = Vec::new();
    while !scheduler.is_idle() {
        step(&mut scheduler);
        used.push(scheduler.snapshot().used_pages());
    }
    // The 31st and 32nd token still fit the first page; the last gives all back.
    assert_eq!(used[..3], [1, 1, 1]);
    assert_eq!(used[3], 2);
    assert_eq!(used.last(), Some(&0));
}

#[test]
fn prompts_that_come_together_are_computed_once() {
    let native = native(Options { batch: 4, ..Options::default() });
    let mut scheduler = Scheduler::new(&native.executor, None, rules(32));
    for id in 0..4 {
        scheduler.submit(id, submission(40, 4), None).unwrap();
    }
    while !scheduler.is_idle() {
        step(&mut scheduler);
    }
    let snapshot = scheduler.snapshot();
    // One page, and what is left of each prompt.
    assert_eq!((snapshot.prefill_tokens, snapshot.prefix_hit_tokens), (32 + 4 * 8, 3 * 32));
    assert_eq!(snapshot.finished, 4);
}

#[test]
fn users_outside_that_hold_all_pages_stall_it_and_break_nothing() {
    let native = native(Options { batch: 1, ..Options::default() });
    let mut outside = native.executor.sequence();
    native.executor.make_room(&mut outside, 64).unwrap();
    let mut scheduler = Scheduler::new(&native.executor, None, rules(256));
    scheduler.submit(0, submission(10, 4), None).unwrap();
    let stalled = scheduler.step(&mut |_, _| Flow::Continue);
    assert!(matches!(stalled, Step::Stalled(Error::Pages { .. })), "{stalled:?}");
    drop(outside);
    assert_eq!(step(&mut scheduler), (1, false));
}

/// How a response ended.
fn end(service: &Service, submission: Submission) -> Result<usize, String> {
    let mut response = service.submit(submission).unwrap();
    let last = response.by_ref().last();
    match last {
        Some(Update::Done(served)) => {
            served.map(|served| served.generated_tokens).map_err(|error| error.to_string())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_panic_ends_its_request_and_not_the_service() {
    let native = Arc::new(native(Options { batch: 4, ..Options::default() }));
    let service = Service::start(Arc::clone(&native), Limits::default()).unwrap();
    let other = service.submit(submission(10, 50)).unwrap();
    let failed = end(&service, of(PANICS, 5, 5)).unwrap_err();
    assert!(failed.contains("a test wants it"), "{failed}");
    let generated = other.filter(|update| matches!(update, Update::Token { .. })).count();
    assert_eq!(generated, 50);
    // In the middle of a pass nobody knows whose fault it is; what comes later is served.
    let failed = end(&service, of(BREAKS, 5, 5)).unwrap_err();
    assert!(failed.contains("a test wants it"), "{failed}");
    assert_eq!(end(&service, submission(12, 7)), Ok(7));
    // Counts follow after the pass in which a request ended.
    let counted = || (service.snapshot().failed, service.snapshot().finished);
    for _ in 0..1000 {
        if counted() == (2, 2) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(counted(), (2, 2));
    service.end(Ending::Drain);
    let counts = native.executor.pages.counts();
    assert_eq!(counts.available(), counts.all);
}

/// What is told of a watched prompt's tokens, whose place another takes after so many steps.
fn told(native: &Native, rules: Rules, disturbed: Option<usize>) -> Vec<LogProbs> {
    let mut scheduler = Scheduler::new(&native.executor, None, rules);
    let watched = Submission { prompt_log_probs: Some(2), ..submission(40, 9) };
    scheduler.submit(0, watched, None).unwrap();
    let mut told = None;
    for step in 0.. {
        if disturbed == Some(step) {
            let urgent = Submission { priority: 1, ..submission(20, 3) };
            scheduler.submit(1, urgent, None).unwrap();
        }
        let worked = scheduler.step(&mut |id, update| {
            if let (0, Update::Prefilled { log_probs, cached, .. }) = (id, update) {
                assert!(told.is_none() && cached == 0);
                told = log_probs;
            }
            Flow::Continue
        });
        if matches!(worked, Step::Idle) {
            break;
        }
    }
    assert_eq!(scheduler.snapshot().preemptions > 0, disturbed.is_some());
    told.unwrap()
}

#[test]
fn log_probabilities_of_a_prompt_are_the_same_where_it_gave_up_its_place_in_between() {
    for name in ["llama", "phi3-longrope", "llama-dynamic"] {
        let native = of_kind(name, Options { batch: 2, ..Options::default() });
        let alone = Rules { sequences: 1, share_prefixes: false, ..rules(64) };
        let undisturbed = told(&native, alone, None);
        assert_eq!(undisturbed.len(), 39);
        for (step_tokens, step) in [(8, 1), (8, 3), (32, 1), (10, 7)] {
            for share_prefixes in [true, false] {
                let rules = Rules { sequences: 1, share_prefixes, ..rules(step_tokens) };
                let found = told(&native, rules, Some(step));
                assert_eq!(found, undisturbed, "{name}, {step_tokens}, {step}");
            }
        }
    }
}
