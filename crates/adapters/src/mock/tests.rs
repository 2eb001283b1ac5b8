use std::time::Instant;

use lathe_api::{Finish, Sampling};

use super::*;

fn request(max_tokens: usize) -> Request {
    Request {
        prompt: vec![1, 2, 3],
        max_tokens,
        sampling: Sampling::default(),
        stop_tokens: vec![],
        stop_strings: vec![],
        ignore_stop: false,
        grammar: None,
    }
}

/// After token t comes token t + 1.
fn counting() -> Options {
    let distribution = Distribution::function(|history, row| {
        row.fill(0.0);
        let next = (*history.last().unwrap() as usize + 1) % row.len();
        row[next] = 10.0;
    });
    Options { distribution, ..Options::default() }
}

fn run(options: Options, request: &Request) -> (Vec<u32>, String, Usage) {
    let mock = Mock::new(options).unwrap();
    let (mut ids, mut text) = (vec![], String::new());
    let usage = mock
        .generate(request, &mut |event| {
            if let Event::Token { id, text: t } = event {
                ids.push(id);
                text.push_str(t);
            }
            Flow::Continue
        })
        .unwrap();
    (ids, text, usage)
}

#[test]
fn greedy_text_follows_the_set_logits() {
    let (ids, text, usage) = run(counting(), &request(3));
    assert_eq!(ids, [4, 5, 6]);
    assert_eq!(text, " w4 w5 w6");
    assert_eq!(usage, Usage { prompt_tokens: 3, generated_tokens: 3, finish: Finish::Length });
}

#[test]
fn stops_at_tokens_and_strings_without_showing_them() {
    let stop = Request { stop_tokens: vec![6], ..request(10) };
    let (ids, _, usage) = run(counting(), &stop);
    assert_eq!((ids, usage.finish), (vec![4, 5], Finish::Stop));
    let stop = Request { stop_strings: vec!["5 w6".into()], ..request(10) };
    let (_, text, usage) = run(counting(), &stop);
    assert_eq!((text.as_str(), usage.finish), (" w4 w", Finish::Stop));
    let on = Request { stop_tokens: vec![6], ignore_stop: true, ..request(4) };
    assert_eq!(run(counting(), &on).0, [4, 5, 6, 7]);
}

#[test]
fn text_held_for_a_stop_string_comes_at_the_end() {
    let stop = Request { stop_strings: vec![" w6 w9".into()], ..request(3) };
    assert_eq!(run(counting(), &stop).1, " w4 w5 w6");
}

#[test]
fn the_caller_can_stop_a_request() {
    let mock = Mock::new(counting()).unwrap();
    let usage = mock.generate(&request(100), &mut |event| match event {
        Event::Token { id: 5, .. } => Flow::Stop,
        _ => Flow::Continue,
    });
    assert_eq!(usage.unwrap().finish, Finish::Cancelled);
}

#[test]
fn same_seed_same_text_and_other_seed_other_text() {
    let drawn = |seed| {
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        run(Options::default(), &Request { sampling, ..request(20) }).0
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
}

#[test]
fn latencies_are_kept() {
    let options = Options {
        start: Seconds(0.004),
        prefill: Seconds(0.002),
        decode: Seconds(0.005),
        ..counting()
    };
    let mock = Mock::new(options).unwrap();
    let started = Instant::now();
    let mut stamps = vec![];
    mock.generate(&request(4), &mut |_| {
        stamps.push(started.elapsed().as_secs_f64());
        Flow::Continue
    })
    .unwrap();
    for (stamp, due) in stamps.iter().zip([0.010, 0.015, 0.020, 0.025, 0.030]) {
        // Late is possible on a busy machine, early is a bug.
        assert!(*stamp >= due && *stamp < due + 0.5, "{stamp} for {due}");
    }
}

#[test]
fn scores_do_not_depend_on_how_the_text_is_cut() {
    let mock = Mock::new(Options::default()).unwrap();
    let mut scorer = mock.scorer().unwrap();
    let whole = scorer.feed(&[5, 6, 7, 8]).unwrap();
    scorer.reset();
    let mut parts = scorer.feed(&[5]).unwrap().values;
    parts.extend(scorer.feed(&[6, 7, 8]).unwrap().values);
    assert_eq!(whole.values, parts);
    assert!(whole.values.iter().all(|v| v.abs() <= 2.0));
}

#[test]
fn rejects_what_it_cannot_do() {
    let mock = Mock::new(Options { context: 8, vocab: 10, ..Options::default() }).unwrap();
    assert!(matches!(
        mock.generate(&request(6), &mut |_| Flow::Continue),
        Err(Error::ContextExceeded { needed: 9, context: 8 })
    ));
    let mut scorer = mock.scorer().unwrap();
    assert!(matches!(scorer.feed(&[10]), Err(Error::BadRequest { .. })));
    assert!(matches!(scorer.feed(&[1; 9]), Err(Error::ContextExceeded { .. })));
    let blind = Options { caps: Caps::default(), ..Options::default() };
    assert!(matches!(Mock::new(blind).unwrap().scorer(), Err(Error::Unsupported { .. })));
    let wrong = Options { distribution: Distribution::Constant(vec![0.0]), ..Options::default() };
    assert!(Mock::new(wrong).is_err());
}

#[test]
fn fails_when_set_to() {
    let mock = Mock::new(Options { fails_after: Some(2), ..counting() }).unwrap();
    let mut seen = 0;
    let result = mock.generate(&request(5), &mut |_| {
        seen += 1;
        Flow::Continue
    });
    assert!(matches!(result, Err(Error::Failed { .. })));
    assert_eq!(seen, 3, "the prefill and two tokens");
}

#[test]
fn a_batch_gives_each_request_what_it_would_get_alone() {
    let short = Request { prompt: vec![9], stop_tokens: vec![11], ..request(5) };
    let mock = Mock::new(counting()).unwrap();
    let mut ids = [vec![], vec![]];
    let usage = mock
        .generate_batch(&[request(3), short], &mut |i, event| {
            if let Event::Token { id, .. } = event {
                ids[i].push(id);
            }
            Flow::Continue
        })
        .unwrap();
    assert_eq!(ids, [vec![4, 5, 6], vec![10]]);
    assert_eq!((usage[0].finish, usage[1].finish), (Finish::Length, Finish::Stop));
    let single = Options { caps: Caps { logits: true, ..Caps::default() }, ..counting() };
    let refused = Mock::new(single).unwrap().generate_batch(&[], &mut |_, _| Flow::Continue);
    assert!(matches!(refused, Err(Error::Unsupported { .. })));
}

#[test]
fn a_batch_is_faster_than_its_requests_in_turn() {
    let options = Options { decode: Seconds(0.004), batch_cost: 0.25, ..counting() };
    let mock = Mock::new(options).unwrap();
    let requests = vec![request(5); 5];
    let started = Instant::now();
    mock.generate_batch(&requests, &mut |_, _| Flow::Continue).unwrap();
    // Five steps of 4 ms · (1 + 0.25 · 4) = 40 ms; in turn they would take 100 ms.
    assert!(started.elapsed().as_secs_f64() >= 0.040);
}
