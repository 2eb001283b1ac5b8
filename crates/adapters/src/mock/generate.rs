use lathe_api::{Error, Event, Finish, Flow, Request, Sampling, Usage};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::Mock;
use super::clock::Clock;
use super::stops::Stops;

/// Requests from start to end, one token of each per step.
pub(super) fn generate(
    mock: &Mock,
    requests: &[Request],
    on: &mut dyn FnMut(usize, Event<'_>) -> Flow,
) -> Result<Vec<Usage>, Error> {
    for request in requests {
        check(mock, request)?;
    }
    let options = &mock.options;
    let clock = Clock::start(options.sleepy);
    let mut jitter = ChaCha8Rng::seed_from_u64(options.seed);
    jitter.set_stream(mock.count_call());
    let prompts: usize = requests.iter().map(|r| r.prompt.len()).sum();
    let mut due = options.start.0 + options.prefill.0 * prompts as f64;
    clock.wait_until(due);
    let mut sequences: Vec<Sequence<'_>> =
        requests.iter().map(|request| Sequence::new(mock, request)).collect();
    for (i, sequence) in sequences.iter_mut().enumerate() {
        sequence.prefilled(&mut |event| on(i, event));
    }
    loop {
        let open = sequences.iter().filter(|s| s.finish.is_none()).count();
        if open == 0 {
            return Ok(sequences.iter().map(Sequence::usage).collect());
        }
        let noise = 1.0 + options.jitter * (2.0 * unit(&mut jitter) - 1.0);
        due += options.decode.0 * noise * (1.0 + options.batch_cost * (open - 1) as f64);
        clock.wait_until(due);
        for (i, sequence) in sequences.iter_mut().enumerate() {
            if sequence.finish.is_none() {
                mock.fail_at(sequence.generated)?;
                sequence.step(&mut |event| on(i, event));
            }
        }
    }
}

fn check(mock: &Mock, request: &Request) -> Result<(), Error> {
    let needed = request.prompt.len().saturating_add(request.max_tokens);
    let context = mock.options.context;
    if needed > context {
        return Err(Error::ContextExceeded { needed, context });
    }
    if request.prompt.is_empty() {
        return Err(Error::BadRequest { what: "the prompt has no tokens".into() });
    }
    if request.grammar.is_some() {
        let (engine, what) = ("mock".into(), "follow a grammar".into());
        return Err(Error::Unsupported { engine, what });
    }
    let temperature = request.sampling.temperature;
    if !(temperature >= 0.0 && temperature.is_finite()) {
        let what = format!("a temperature of {temperature} makes no sense; use 0 or above");
        return Err(Error::BadRequest { what });
    }
    mock.check_tokens(&request.prompt)
}

/// One request on its way.
struct Sequence<'a> {
    mock: &'a Mock,
    request: &'a Request,
    history: Vec<u32>,
    row: Vec<f32>,
    sampling: ChaCha8Rng,
    stops: Stops<'a>,
    generated: usize,
    finish: Option<Finish>,
}

impl<'a> Sequence<'a> {
    fn new(mock: &'a Mock, request: &'a Request) -> Self {
        Self {
            mock,
            request,
            history: request.prompt.clone(),
            row: vec![0.0; mock.options.vocab],
            sampling: ChaCha8Rng::seed_from_u64(request.sampling.seed),
            stops: Stops::new(&request.stop_strings),
            generated: 0,
            finish: None,
        }
    }

    fn prefilled(&mut self, on: &mut dyn FnMut(Event<'_>) -> Flow) {
        if on(Event::Prefilled { tokens: self.request.prompt.len() }) == Flow::Stop {
            self.finish = Some(Finish::Cancelled);
        } else if self.request.max_tokens == 0 {
            self.finish = Some(Finish::Length);
        }
    }

    fn step(&mut self, on: &mut dyn FnMut(Event<'_>) -> Flow) {
        let heeds_stops = !self.request.ignore_stop;
        let id = self.next();
        if heeds_stops && self.request.stop_tokens.contains(&id) {
            self.flush(on);
            self.finish = Some(Finish::Stop);
            return;
        }
        self.generated += 1;
        let text = self.mock.text(id);
        let (text, stopped) = if heeds_stops { self.stops.push(&text) } else { (text, false) };
        let flow = on(Event::Token { id, text: &text });
        if stopped {
            self.finish = Some(Finish::Stop);
        } else if flow == Flow::Stop {
            self.finish = Some(Finish::Cancelled);
        } else if self.generated == self.request.max_tokens {
            self.flush(on);
            self.finish = Some(Finish::Length);
        }
    }

    /// Shows text that was held back for a stop string that did not come, with the last token.
    fn flush(&mut self, on: &mut dyn FnMut(Event<'_>) -> Flow) {
        let rest = self.stops.take_rest();
        if let (false, Some(&id)) = (rest.is_empty(), self.history.last()) {
            on(Event::Token { id, text: &rest });
        }
    }

    fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.request.prompt.len(),
            generated_tokens: self.generated,
            finish: self.finish.unwrap_or(Finish::Cancelled),
        }
    }

    /// The next token: the likeliest at temperature 0, else drawn. Of the other sampling options
    /// only the logit bias is heard.
    fn next(&mut self) -> u32 {
        self.mock.options.distribution.fill(&self.history, &mut self.row);
        let Sampling { temperature, logit_bias, .. } = &self.request.sampling;
        for &(id, bias) in logit_bias {
            if let Some(value) = self.row.get_mut(id as usize) {
                *value += bias;
            }
        }
        let best =
            (0..self.row.len()).fold(0, |b, i| if self.row[i] > self.row[b] { i } else { b });
        let id = if *temperature == 0.0 { best } else { self.draw(best, *temperature) } as u32;
        self.history.push(id);
        id
    }

    fn draw(&mut self, best: usize, temperature: f32) -> usize {
        let top = self.row[best];
        let weight = |v: f32| f64::from((v - top) / temperature).exp();
        let total: f64 = self.row.iter().map(|&v| weight(v)).sum();
        let mut left = unit(&mut self.sampling) * total;
        for (i, &v) in self.row.iter().enumerate() {
            left -= weight(v);
            if left < 0.0 {
                return i;
            }
        }
        best
    }
}

/// A uniform draw from 0 to 1.
fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}
