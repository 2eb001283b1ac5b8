use lathe_api::{Error, Event, Finish, Flow, Request, Usage};

use super::{OnnxRuntime, graph::Feed};

/// How far a request of a batch is.
struct State {
    /// Positions in the cache.
    length: usize,
    generated: usize,
    finish: Option<Finish>,
    /// The token to be fed next.
    last: i64,
}

/// Generates from several prompts in step: short prompts are filled up, and sequences that have
/// ended are carried on without growing until all have.
pub(super) fn run(
    engine: &OnnxRuntime,
    requests: &[Request],
    on: &mut dyn FnMut(usize, Event<'_>) -> Flow,
) -> Result<Vec<Usage>, Error> {
    for request in requests {
        crate::check(&engine.info, request)?;
        suits(engine, request)?;
    }
    let lengths = || requests.iter().map(|request| request.prompt.len());
    let (Some(shortest), Some(longest)) = (lengths().min(), lengths().max()) else {
        return Ok(Vec::new());
    };
    let most = requests.iter().map(|r| r.prompt.len() + r.max_tokens).max().unwrap_or(0);
    let failed = |error: ort::Error| engine.failed(error);
    let vocab = engine.info.vocab;
    let mut graph = engine.graph();
    let mut sequences = graph.begin(requests.len(), most.max(longest)).map_err(failed)?;
    let mut states: Vec<State> = requests.iter().map(State::new).collect();
    let from = shortest - 1;
    let prompts = requests.iter().flat_map(|request| filled(&request.prompt, longest));
    let feed = Feed { ids: prompts.collect(), mask: mask(&states, longest), from };
    let mut logits = graph.run(&mut sequences, feed).map_err(failed)?;
    let mut rows = longest - from;
    loop {
        for (index, (state, request)) in states.iter_mut().zip(requests).enumerate() {
            // The prompt's last row first; then there is one for each sequence.
            let row = if rows > 1 { state.length - 1 - from } else { 0 };
            let row = &logits[(index * rows + row) * vocab..][..vocab];
            state.take(request, likeliest(row), &mut |event| on(index, event));
        }
        if states.iter().all(|state| state.finish.is_some()) {
            break;
        }
        states.iter_mut().filter(|state| state.finish.is_none()).for_each(|s| s.length += 1);
        let longest = states.iter().map(|state| state.length).max().unwrap_or(0);
        let ids = states.iter().map(|state| state.last).collect();
        let feed = Feed { ids, mask: mask(&states, longest), from: 0 };
        logits = graph.run(&mut sequences, feed).map_err(failed)?;
        rows = 1;
    }
    let usage = |(request, state): (&Request, &State)| Usage {
        prompt_tokens: request.prompt.len(),
        generated_tokens: state.generated,
        finish: state.finish.unwrap_or(Finish::Length),
    };
    Ok(requests.iter().zip(&states).map(usage).collect())
}

impl State {
    fn new(request: &Request) -> Self {
        let finish = (request.max_tokens == 0).then_some(Finish::Length);
        Self { length: request.prompt.len(), generated: 0, finish, last: 0 }
    }

    fn take(&mut self, request: &Request, id: u32, on: &mut dyn FnMut(Event<'_>) -> Flow) {
        if self.finish.is_some() {
            return;
        }
        if !request.ignore_stop && request.stop_tokens.contains(&id) {
            self.finish = Some(Finish::Stop);
            return;
        }
        self.generated += 1;
        self.last = id.into();
        if on(Event::Token { id, text: "" }) == Flow::Stop {
            self.finish = Some(Finish::Cancelled);
        } else if self.generated == request.max_tokens {
            self.finish = Some(Finish::Length);
        }
    }
}

/// A prompt with tokens behind it that nobody looks at.
fn filled(prompt: &[u32], length: usize) -> impl Iterator<Item = i64> {
    prompt.iter().map(|id| i64::from(*id)).chain(std::iter::repeat(0)).take(length)
}

/// For each sequence as many ones as it has positions.
fn mask(states: &[State], longest: usize) -> Vec<i64> {
    let row = |state: &State| {
        let ones = state.length;
        (0..longest).map(move |at| i64::from(at < ones))
    };
    states.iter().flat_map(row).collect()
}

/// The token of the highest logit, the first of equals.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, logit) in logits.iter().enumerate() {
        if *logit > best.1 {
            best = (id, *logit);
        }
    }
    best.0 as u32
}

fn suits(engine: &OnnxRuntime, request: &Request) -> Result<(), Error> {
    let cannot = |what: &str| {
        Err(Error::Unsupported { engine: engine.info.engine.clone(), what: what.to_owned() })
    };
    let sampling = &request.sampling;
    if sampling.temperature > 0.0 {
        return cannot("draw tokens: it takes the likeliest");
    }
    if !request.stop_strings.is_empty() {
        return cannot("stop at strings");
    }
    let penalties = [sampling.presence_penalty, sampling.frequency_penalty];
    if !sampling.logit_bias.is_empty()
        || penalties.iter().any(|penalty| *penalty != 0.0)
        || sampling.repetition_penalty != 1.0
    {
        return cannot("change logits");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_prompts_are_filled_up_and_masked() {
        let state = |length| State { length, generated: 0, finish: None, last: 0 };
        assert_eq!(filled(&[7, 8], 4).collect::<Vec<_>>(), [7, 8, 0, 0]);
        assert_eq!(mask(&[state(2), state(3)], 3), [1, 1, 0, 1, 1, 1]);
    }

    #[test]
    fn the_likeliest_token_is_the_first_of_equals() {
        assert_eq!(likeliest(&[0.5, 2.0, -1.0, 2.0]), 1);
        assert_eq!(likeliest(&[f32::NAN, -3.0]), 1);
    }
}
