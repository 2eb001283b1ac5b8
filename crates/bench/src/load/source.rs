use lathe_api::{Request, Sampling};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Lengths, Trace};
use crate::Text;

/// What requests ask for: a function of their number, so that every engine and every level of a
/// sweep is asked the same.
///
/// Text goes on past its end ([`Request::ignore_stop`]), so that all generate as many tokens as
/// was asked.
#[derive(Clone, Debug)]
pub struct Source {
    pub tokens: Tokens,
    pub asked: Asked,
    /// The first so many tokens of all prompts are the same.
    pub shared_prefix: usize,
    pub seed: u64,
}

/// What prompts are made of: pieces of a text, else random tokens.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Random tokens are below this.
    pub vocab: usize,
    pub text: Option<Text>,
}

/// How long prompts and answers are.
#[derive(Clone, Debug)]
pub enum Asked {
    Drawn {
        prompt: Lengths,
        new: Lengths,
    },
    Trace(Trace),
    /// Prompts, each with the new tokens to ask for, over and over; at least one.
    Prompts(Vec<(Vec<u32>, usize)>),
}

/// Apart from every number of a request.
const WARM_UP: u64 = 1 << 62;

impl Source {
    /// How many different requests there are, where there is an end to them.
    pub fn count(&self) -> Option<usize> {
        match &self.asked {
            Asked::Trace(trace) => Some(trace.entries.len()),
            Asked::Drawn { .. } | Asked::Prompts(_) => None,
        }
    }

    /// The longest sequence, prompt and answer together, in tokens.
    pub fn context(&self) -> usize {
        match &self.asked {
            Asked::Drawn { prompt, new } => {
                prompt.longest().max(self.shared_prefix + 1) + new.longest()
            }
            Asked::Trace(trace) => {
                let lengths = trace.entries.iter().map(|e| e.prompt_tokens + e.new_tokens);
                lengths.max().unwrap_or(2)
            }
            Asked::Prompts(prompts) => {
                let lengths = prompts.iter().map(|(ids, new)| self.shared_prefix + ids.len() + new);
                lengths.max().unwrap_or(2)
            }
        }
    }

    /// Request `number`, from 0.
    pub fn request(&self, number: usize) -> Request {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(number as u64);
        self.made(number, &mut rng)
    }

    /// A request like those that count, which is none of them: nothing that an engine keeps of it
    /// helps it later, except with [`Asked::Prompts`].
    pub fn warm_up(&self, number: usize) -> Request {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(WARM_UP + number as u64);
        self.made(number, &mut rng)
    }

    fn made(&self, number: usize, rng: &mut ChaCha8Rng) -> Request {
        let (prompt, max_tokens) = match &self.asked {
            Asked::Drawn { prompt, new } => {
                let (length, new) = (prompt.draw(rng).max(self.shared_prefix + 1), new.draw(rng));
                let mut ids = self.prefix();
                self.tokens.add(length - ids.len(), rng, &mut ids);
                (ids, new)
            }
            Asked::Trace(trace) => match trace.entries.get(number % trace.entries.len().max(1)) {
                Some(entry) => {
                    let mut ids = Vec::with_capacity(entry.prompt_tokens + trace.block);
                    // A file may name more blocks than its prompt has room for.
                    let room = entry.prompt_tokens.div_ceil(trace.block);
                    for block in entry.blocks.iter().take(room) {
                        // The same block of tokens wherever the trace names it.
                        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ 0x626c_6f63_6b73);
                        rng.set_stream(*block);
                        self.tokens.add(trace.block, &mut rng, &mut ids);
                    }
                    ids.truncate(entry.prompt_tokens);
                    self.tokens.add(entry.prompt_tokens - ids.len(), rng, &mut ids);
                    (ids, entry.new_tokens)
                }
                None => (Vec::new(), 1),
            },
            Asked::Prompts(prompts) => {
                let mut ids = self.prefix();
                let one = prompts.get(number % prompts.len().max(1));
                ids.extend(one.iter().flat_map(|(ids, _)| ids));
                (ids, one.map_or(1, |(_, new)| *new))
            }
        };
        Request {
            prompt,
            max_tokens,
            sampling: Sampling::default(),
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            ignore_stop: true,
            grammar: None,
        }
    }

    fn prefix(&self) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ 0x7072_6566_6978);
        self.tokens.add(self.shared_prefix, &mut rng, &mut ids);
        ids
    }
}

impl Tokens {
    /// Adds `count` tokens: a piece of the text from a place that is drawn, over its end to its
    /// beginning where it is short.
    fn add(&self, count: usize, rng: &mut ChaCha8Rng, to: &mut Vec<u32>) {
        match &self.text {
            Some(Text { ids, .. }) if !ids.is_empty() => {
                let start = rng.random_range(0..ids.len());
                to.extend(ids.iter().cycle().skip(start).take(count));
            }
            _ => {
                let vocab = u32::try_from(self.vocab.max(1)).unwrap_or(u32::MAX);
                to.extend((0..count).map(|_| rng.random_range(0..vocab)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Caps;

    fn drawn(shared_prefix: usize) -> Source {
        let asked = Asked::Drawn {
            prompt: "uniform:2:40".parse().unwrap(),
            new: "uniform:1:9".parse().unwrap(),
        };
        Source { tokens: Tokens { vocab: 50, text: None }, asked, shared_prefix, seed: 4 }
    }

    #[test]
    fn a_request_is_a_function_of_its_number() {
        let source = drawn(0);
        assert_eq!(source.request(3), source.request(3));
        assert_ne!(source.request(3).prompt, source.request(4).prompt);
        assert_ne!(source.request(3).prompt, source.warm_up(3).prompt);
        let lengths: Vec<usize> = (0..50).map(|n| source.request(n).prompt.len()).collect();
        assert!(lengths.iter().all(|n| (2..=40).contains(n)) && lengths.iter().any(|n| *n > 20));
        assert!(source.request(9).prompt.iter().all(|id| *id < 50));
    }

    #[test]
    fn prompts_share_no_more_than_they_are_told() {
        let source = drawn(16);
        let (a, b) = (source.request(0).prompt, source.request(1).prompt);
        assert_eq!(a[..16], b[..16]);
        assert!((0..30).all(|n| source.request(n).prompt.len() > 16));
        assert_eq!(source.context(), 49);
    }

    #[test]
    fn a_text_goes_round() {
        let text = Text { name: "t".into(), ids: (0..7).collect() };
        let tokens = Tokens { vocab: 7, text: Some(text) };
        let asked = Asked::Drawn { prompt: Lengths::Fixed(20), new: Lengths::Fixed(1) };
        let prompt = Source { tokens, asked, shared_prefix: 0, seed: 1 }.request(0).prompt;
        assert!(prompt.windows(2).all(|pair| pair[1] == (pair[0] + 1) % 7) && prompt.len() == 20);
    }

    #[test]
    fn blocks_of_a_trace_with_the_same_hash_are_the_same_tokens() {
        let line = |at: u32, hashes: &str| {
            format!(
                r#"{{"timestamp":{at},"input_length":1200,"output_length":5,"hash_ids":{hashes}}}"#
            )
        };
        let text = [line(0, "[7,8,9]"), line(10, "[7,8,4]"), line(20, "[5,8]")].join("\n");
        let trace = Trace::from_text("t.jsonl", &text, &Caps::default()).unwrap();
        let tokens = Tokens { vocab: 1000, text: None };
        let source = Source { tokens, asked: Asked::Trace(trace), shared_prefix: 0, seed: 1 };
        let [a, b, c] = [0, 1, 2].map(|n| source.request(n).prompt);
        assert_eq!((a.len(), c.len(), source.count()), (1200, 1200, Some(3)));
        assert_eq!(a[..1024], b[..1024]);
        assert_eq!(a[512..1024], c[512..1024]);
        assert_ne!(a[1024..], b[1024..]);
        assert_ne!(a[..512], c[..512]);
        assert_ne!(source.warm_up(2).prompt[1024..], c[1024..], "beyond its blocks");
    }
}
