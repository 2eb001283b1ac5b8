//! What every engine is asked.

use lathe_api::{Engine, Event, Flow, Request, Sampling, Usage};

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
