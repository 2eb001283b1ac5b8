//! An engine with set latencies and set logits: bench, eval, serve and report are tested against it
//! alone.

mod clock;
mod distribution;
mod generate;
mod server;
mod stops;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lathe_api::{Caps, Engine, Error, Event, Flow, Info, Logits, Request, Scorer, Usage};
use lathe_base::Seconds;

pub use distribution::{Distribution, Function};
pub use server::serve;

/// What the mock pretends to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Vocabulary size V.
    pub vocab: usize,
    /// The longest sequence in tokens.
    pub context: usize,
    /// Bytes of weights it claims to hold.
    pub weight_bytes: u64,
    pub caps: Caps,
    /// Time before the first token that does not depend on the prompt.
    pub start: Seconds,
    /// Time per prompt token.
    pub prefill: Seconds,
    /// Time per generated token.
    pub decode: Seconds,
    /// How much longer a step takes for each further sequence in it: 0 shares it fully, 1 not at
    /// all.
    pub batch_cost: f64,
    /// Relative half-width of the uniform noise on each decode time, drawn from `seed`: 0.1 gives
    /// times between 90 % and 110 %. The first call has the same times in every process, the
    /// second likewise, and so on.
    pub jitter: f64,
    pub seed: u64,
    /// The logits after each token.
    pub distribution: Distribution,
    /// The text of each token id; see [`Options::words`].
    pub text: Arc<dyn TokenText>,
    /// Sleeps to the end of every wait, some 60 µs too long, instead of spinning through the last
    /// 0.2 ms of it: for many requests at once, whose spinning would leave nobody a core.
    pub sleepy: bool,
    /// Fails with [`Error::Failed`] once this many tokens are generated or scored in one sequence.
    pub fails_after: Option<usize>,
}

/// The text of a token id.
pub trait TokenText: Send + Sync + std::fmt::Debug {
    fn text(&self, id: u32) -> String;
}

/// Token 17 reads ` w17`.
#[derive(Clone, Copy, Debug)]
struct Words;

impl TokenText for Words {
    fn text(&self, id: u32) -> String {
        format!(" w{id}")
    }
}

impl Options {
    /// Token texts ` w0`, ` w1`, …: the default.
    pub fn words() -> Arc<dyn TokenText> {
        Arc::new(Words)
    }
}

impl Default for Options {
    /// 256 tokens, a context of 4096, no latency, and logits that look random but depend on the
    /// last three tokens alone.
    fn default() -> Self {
        Self {
            vocab: 256,
            context: 4096,
            weight_bytes: 1 << 20,
            caps: Caps { logits: true, batch: true, seed: true, grammar: false },
            start: Seconds(0.0),
            prefill: Seconds(0.0),
            decode: Seconds(0.0),
            batch_cost: 0.1,
            jitter: 0.0,
            seed: 0,
            distribution: Distribution::Hashed { seed: 0, spread: 2.0 },
            text: Self::words(),
            sleepy: false,
            fails_after: None,
        }
    }
}

/// The mock engine.
#[derive(Debug)]
pub struct Mock {
    info: Info,
    options: Options,
    /// Calls so far: each has its own stream of jitter.
    calls: AtomicU64,
}

impl Mock {
    /// # Errors
    /// [`Error::BadRequest`] for a vocabulary, context, latency or set of logits that cannot be, or a
    /// jitter or batch cost outside 0 to 1.
    pub fn new(options: Options) -> Result<Self, Error> {
        let bad = |what: String| Err(Error::BadRequest { what });
        if options.vocab == 0 || options.context == 0 {
            return bad("a mock needs a vocabulary and a context of at least 1".into());
        }
        for (name, share) in [("jitter", options.jitter), ("batch_cost", options.batch_cost)] {
            if !(0.0..=1.0).contains(&share) {
                return bad(format!("{name} must be between 0 and 1 but is {share}"));
            }
        }
        for time in [options.start, options.prefill, options.decode] {
            if !(time.0 >= 0.0 && time.0 < 3600.0) {
                return bad(format!("a mock's latency cannot be {} s", time.0));
            }
        }
        options.distribution.check(options.vocab)?;
        let info = Info {
            engine: "mock".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            device: "none".into(),
            vocab: options.vocab,
            context: options.context,
            weight_bytes: options.weight_bytes,
            caps: options.caps,
            found_running: false,
        };
        Ok(Self { info, options, calls: AtomicU64::new(0) })
    }

    /// The text of a token id, as generated events spell it.
    pub fn text(&self, id: u32) -> String {
        self.options.text.text(id)
    }

    /// The number of this call, from 0.
    fn count_call(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed)
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<(), Error> {
        match tokens.iter().find(|&&t| t as usize >= self.options.vocab) {
            Some(t) => Err(Error::BadRequest {
                what: format!("token {t} is outside the vocabulary of {}", self.options.vocab),
            }),
            None => Ok(()),
        }
    }

    fn fail_at(&self, position: usize) -> Result<(), Error> {
        match self.options.fails_after {
            Some(limit) if position >= limit => Err(Error::Failed {
                engine: "mock".into(),
                why: format!("it was set to fail after {limit} tokens"),
            }),
            _ => Ok(()),
        }
    }
}

impl Engine for Mock {
    fn info(&self) -> &Info {
        &self.info
    }

    fn generate(
        &self,
        request: &Request,
        on: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Usage, Error> {
        let mut usage =
            generate::generate(self, std::slice::from_ref(request), &mut |_, event| on(event))?;
        Ok(usage.remove(0))
    }

    fn generate_batch(
        &self,
        requests: &[Request],
        on: &mut dyn FnMut(usize, Event<'_>) -> Flow,
    ) -> Result<Vec<Usage>, Error> {
        if !self.options.caps.batch {
            let (engine, what) =
                ("mock".into(), "generate from several prompts in one batch".into());
            return Err(Error::Unsupported { engine, what });
        }
        generate::generate(self, requests, on)
    }

    fn scorer(&self) -> Result<Box<dyn Scorer + '_>, Error> {
        if !self.options.caps.logits {
            let (engine, what) = ("mock".into(), "give logits".into());
            return Err(Error::Unsupported { engine, what });
        }
        Ok(Box::new(Sequence { mock: self, history: Vec::new() }))
    }
}

struct Sequence<'a> {
    mock: &'a Mock,
    history: Vec<u32>,
}

impl Scorer for Sequence<'_> {
    fn feed(&mut self, tokens: &[u32]) -> Result<Logits, Error> {
        let options = &self.mock.options;
        let needed = self.history.len() + tokens.len();
        if needed > options.context {
            return Err(Error::ContextExceeded { needed, context: options.context });
        }
        self.mock.check_tokens(tokens)?;
        self.mock.fail_at(needed)?;
        let clock = clock::Clock::start(options.sleepy);
        let vocab = options.vocab;
        let mut values = vec![0.0; tokens.len() * vocab];
        for (&token, row) in tokens.iter().zip(values.chunks_exact_mut(vocab)) {
            self.history.push(token);
            options.distribution.fill(&self.history, row);
        }
        clock.wait_until(options.prefill.0 * tokens.len() as f64);
        Ok(Logits { vocab, values })
    }

    fn reset(&mut self) {
        self.history.clear();
    }
}

#[cfg(test)]
mod tests;
