use lathe_api::{Error, Event, Finish, Flow, Request, Sampling, Usage};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::Mock;
use super::clock::Clock;
use super::stops::Stops;

/// One request from start to end.
pub(super) fn generate(
    mock: &Mock,
    request: &Request,
    on: &mut dyn FnMut(Event<'_>) -> Flow,
) -> Result<Usage, Error> {
    check(mock, request)?;
    let options = &mock.options;
    let clock = Clock::start();
    let mut due = options.start.0 + options.prefill.0 * request.prompt.len() as f64;
    clock.wait_until(due);
    let mut run = Run {
        mock,
        request,
        history: request.prompt.clone(),
        row: vec![0.0; options.vocab],
        sampling: ChaCha8Rng::seed_from_u64(request.sampling.seed),
    };
    let mut jitter = ChaCha8Rng::seed_from_u64(options.seed);
    jitter.set_stream(mock.count_request());
    let usage = |generated_tokens, finish| Usage {
        prompt_tokens: request.prompt.len(),
        generated_tokens,
        finish,
    };
    if on(Event::Prefilled { tokens: request.prompt.len() }) == Flow::Stop {
        return Ok(usage(0, Finish::Cancelled));
    }
    let mut stops = Stops::new(&request.stop_strings);
    for done in 0..request.max_tokens {
        mock.fail_at(done)?;
        let id = run.next();
        due += options.decode.0 * (1.0 + options.jitter * (2.0 * unit(&mut jitter) - 1.0));
        clock.wait_until(due);
        if !request.ignore_stop && request.stop_tokens.contains(&id) {
            return finish(stops, id, on, usage(done, Finish::Stop));
        }
        let (text, stopped) = stops.push(&mock.text(id));
        let flow = on(Event::Token { id, text: &text });
        if stopped && !request.ignore_stop {
            return Ok(usage(done + 1, Finish::Stop));
        }
        if flow == Flow::Stop {
            return Ok(usage(done + 1, Finish::Cancelled));
        }
    }
    let last = run.history.last().copied().unwrap_or(0);
    finish(stops, last, on, usage(request.max_tokens, Finish::Length))
}

/// Shows text that was held back for a stop string that did not come.
fn finish(
    stops: Stops<'_>,
    id: u32,
    on: &mut dyn FnMut(Event<'_>) -> Flow,
    usage: Usage,
) -> Result<Usage, Error> {
    let rest = stops.rest();
    if !rest.is_empty() {
        on(Event::Token { id, text: &rest });
    }
    Ok(usage)
}

fn check(mock: &Mock, request: &Request) -> Result<(), Error> {
    let needed = request.prompt.len() + request.max_tokens;
    let context = mock.options.context;
    if needed > context {
        return Err(Error::ContextExceeded { needed, context });
    }
    if request.prompt.is_empty() {
        return Err(Error::BadRequest { what: "the prompt has no tokens".into() });
    }
    let temperature = request.sampling.temperature;
    if !(temperature >= 0.0 && temperature.is_finite()) {
        let what = format!("a temperature of {temperature} makes no sense; use 0 or above");
        return Err(Error::BadRequest { what });
    }
    mock.check_tokens(&request.prompt)
}

struct Run<'a> {
    mock: &'a Mock,
    request: &'a Request,
    history: Vec<u32>,
    row: Vec<f32>,
    sampling: ChaCha8Rng,
}

impl Run<'_> {
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
