//! What every engine is asked.

use lathe_api::{Engine, Event, Flow, Request, Sampling, Turn, Usage};

/// Greedy, from a prompt of three tokens.
pub(crate) fn request(max_tokens: usize) -> Request {
    Request {
        prompt: vec![1, 2, 3],
        max_tokens,
        sampling: Sampling::default(),
        stop_tokens: vec![],
        stop_strings: vec![],
        ignore_stop: true,
        grammar: None,
    }
}

/// The ids that came, and how it ended.
pub(crate) fn generate(
    engine: &dyn Engine,
    request: &Request,
) -> (Vec<u32>, Result<Usage, String>) {
    let mut ids = Vec::new();
    let usage = engine.generate(request, &mut |event| {
        if let Event::Token { id, .. } = event {
            ids.push(id);
        }
        Flow::Continue
    });
    (ids, usage.map_err(|error| error.to_string()))
}

/// Checks what the fake servers answer when they are asked for more than a text.
pub(crate) fn tells(engine: &dyn Engine) {
    assert_eq!(engine.tokenize("AB").unwrap(), [1, 65, 66]);
    let turns = [Turn { role: "user", content: "a" }, Turn { role: "assistant", content: "b" }];
    assert_eq!(engine.render(&turns).unwrap(), r#"<"user">"a"<"assistant">"b""#);
    let mut scorer = engine.scorer().unwrap();
    let vocab = engine.info().vocab;
    for _ in 0..2 {
        // Each token in turn, and the last two together: the sums are 5, 9 and 4095.
        for (tokens, sums) in [(&[5][..], &[5][..]), (&[4, 4086], &[9, 4095])] {
            let logits = scorer.feed(tokens).unwrap();
            assert_eq!((logits.vocab, logits.rows().len()), (vocab, sums.len()));
            for (row, sum) in logits.rows().zip(sums) {
                assert_eq!(row[*sum], 0.0);
                assert_eq!(row[(sum + 3) % vocab], -3.0);
            }
        }
        scorer.reset();
    }
    let error = scorer.feed(&[1; 65]).unwrap_err().to_string();
    assert!(error.contains("64"), "{error}");
}
