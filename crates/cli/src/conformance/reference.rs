//! What engines are held against: Lathe's own, computing exactly, and how far its other arithmetics
//! are from that.

use lathe_api::{Engine, Event, Flow, Request, Sampling};
use lathe_base::Progress;
use lathe_engine::Native;
use lathe_eval::Divergence;
use lathe_optimize::{EngineOrder, Precision};
use serde::{Deserialize, Serialize};

use super::Subject;
use crate::open::{self, plain};

/// Texts whose tokens' probabilities are compared.
const PROBES: [&str; 2] = [
    "The harbour was quiet when the last boat came in, and nobody asked where it had been.",
    "def mean(values):\n    total = sum(values)\n    return total / len(values)\n",
];

/// What is written on from.
const PROMPTS: [&str; 3] =
    ["The old clock in the hall", "Three things to know about rivers:", "import json\n\ndef read("];

/// The KV cache that rounds nothing.
const EXACT_KV: &str = "f32";

/// Tokens of a probe or prompt at most, and those that there must be room for.
pub(super) const LONGEST: usize = 48;
pub(super) const SHORTEST: usize = 8;

/// The exact engine with its answers.
pub(crate) struct Reference {
    pub(super) native: Native,
    pub(super) probes: Vec<Probe>,
    pub(super) texts: Vec<Text>,
}

/// A sequence and the logits after each of its tokens.
pub(super) struct Probe {
    pub(super) tokens: Vec<u32>,
    pub(super) rows: Vec<Vec<f32>>,
}

/// What is written after a prompt when the likeliest token is always taken.
pub(super) struct Text {
    pub(super) request: Request,
    pub(super) tokens: Vec<u32>,
    pub(super) text: String,
}

/// How far Lathe's own arithmetics are from the exact one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Noise {
    /// Mean KL divergence of predictions, in nats, with the usual arithmetic and KV cache.
    pub(crate) fast: f64,
    /// The same with weights, activations and logits rounded to bfloat16.
    pub(crate) bf16: f64,
    /// By how much the lead of the likeliest token over the next differs at most, in nats.
    pub(crate) gap: f64,
}

/// Other arithmetics round elsewhere, and attention in other types: a divergence may be so many times
/// the noise. Wrong positions, scales or layers are off by thousands of times as much.
const TIMES: f64 = 10.0;

impl Noise {
    /// Above it a divergence is more than arithmetic.
    pub(crate) fn limit(&self) -> f64 {
        /// What f32 sums in another order are off by.
        const LEAST: f64 = 1e-8;
        TIMES * self.fast.max(self.bf16).max(LEAST)
    }

    /// Two tokens, one of which leads by no more, may change places. A divergence goes with the square
    /// of what logarithms are off by.
    pub(crate) fn tie(&self) -> f64 {
        TIMES.sqrt() * self.gap
    }
}

impl Reference {
    pub(crate) fn new(subject: &Subject) -> anyhow::Result<Self> {
        let native = native(subject, Precision::Exact, EXACT_KV)?;
        let cut = |text: &str| -> anyhow::Result<Vec<u32>> {
            let mut tokens = plain(&subject.tokenizer, text)?;
            tokens.truncate(LONGEST.min(subject.order.context - subject.tokens - 2));
            Ok(tokens)
        };
        let mut probes = Vec::new();
        for text in PROBES {
            let tokens = cut(text)?;
            let rows = rows(&native, &tokens)?;
            probes.push(Probe { tokens, rows });
        }
        let mut texts = Vec::new();
        for prompt in PROMPTS {
            let request = Request {
                prompt: cut(prompt)?,
                max_tokens: subject.tokens,
                sampling: Sampling::default(),
                stop_tokens: subject.tokenizer.stop_tokens().to_vec(),
                stop_strings: Vec::new(),
                ignore_stop: false,
                grammar: None,
            };
            let (tokens, text) = written(&native, &request)?;
            texts.push(Text { request, tokens, text });
        }
        Ok(Self { native, probes, texts })
    }

    /// Measures it with the other arithmetics, one loaded after the other.
    pub(crate) fn noise(
        &self,
        subject: &Subject,
        progress: &dyn Progress,
    ) -> anyhow::Result<Noise> {
        let mut noise = Noise { fast: 0.0, bf16: 0.0, gap: 0.0 };
        let usual = subject.order.kv.as_str();
        for (precision, kv) in [(Precision::Fast, usual), (Precision::Bf16, EXACT_KV)] {
            progress.check()?;
            progress.at("how far Lathe's own arithmetics differ", 0, 0);
            let native = native(subject, precision, kv)?;
            let mut between = Divergence::default();
            let mut all = Vec::new();
            for probe in &self.probes {
                for (exact, found) in probe.rows.iter().zip(rows(&native, &probe.tokens)?) {
                    all.extend(between.between(exact, &found));
                    let two = likeliest(exact);
                    noise.gap = noise.gap.max((lead(exact, two) - lead(&found, two)).abs());
                }
            }
            let mean = all.iter().sum::<f64>() / all.len().max(1) as f64;
            match precision {
                Precision::Bf16 => noise.bf16 = mean,
                Precision::Fast | Precision::Exact => noise.fast = mean,
            }
        }
        Ok(noise)
    }

    /// By how much the exact logarithm of one token's probability is above another's, after a text.
    pub(super) fn lead(&self, text: &[u32], of: u32, over: u32) -> anyhow::Result<f64> {
        let rows = rows(&self.native, text)?;
        Ok(lead(rows.last().map(Vec::as_slice).unwrap_or_default(), [of, over]))
    }
}

fn native(subject: &Subject, precision: Precision, kv: &str) -> anyhow::Result<Native> {
    let (kv, order) = (kv.to_owned(), subject.order.clone());
    open::native(&subject.checkpoint, &EngineOrder { precision, kv, ..order })
}

/// The logits after each token, as far as there are tokens for them.
pub(super) fn rows(engine: &dyn Engine, tokens: &[u32]) -> Result<Vec<Vec<f32>>, lathe_api::Error> {
    let mut scorer = engine.scorer()?;
    let logits = scorer.feed(tokens)?;
    Ok(logits.rows().map(<[f32]>::to_vec).collect())
}

/// The tokens that an engine writes, and their text as it tells it.
pub(super) fn written(
    engine: &dyn Engine,
    request: &Request,
) -> Result<(Vec<u32>, String), lathe_api::Error> {
    let (mut ids, mut all) = (Vec::new(), String::new());
    engine.generate(request, &mut |event| {
        if let Event::Token { id, text } = event {
            ids.push(id);
            all.push_str(text);
        }
        Flow::Continue
    })?;
    Ok((ids, all))
}

/// By how much the logarithm of a token's probability is above another's, in nats; without end where
/// there is no other.
fn lead(row: &[f32], [of, over]: [u32; 2]) -> f64 {
    let logit = |id: u32| row.get(id as usize).map_or(f64::NEG_INFINITY, |x| f64::from(*x));
    logit(of) - logit(over)
}

/// The likeliest token and the next.
pub(super) fn likeliest(row: &[f32]) -> [u32; 2] {
    let mut best = [(0, f32::NEG_INFINITY); 2];
    for (id, logit) in (0..).zip(row) {
        if *logit > best[0].1 {
            best = [(id, *logit), best[0]];
        } else if *logit > best[1].1 {
            best[1] = (id, *logit);
        }
    }
    best.map(|(id, _)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_two_and_their_lead_are_those_of_a_row() {
        let row = [1.0, 3.0, f32::NEG_INFINITY, 2.0];
        assert_eq!(likeliest(&row), [1, 3]);
        assert_eq!(likeliest(&[5.0, 4.0, 6.0]), [2, 0]);
        assert_eq!((lead(&row, [1, 3]), lead(&row, [0, 1])), (1.0, -2.0));
        assert_eq!(lead(&row, [9, 1]), f64::NEG_INFINITY);
        assert_eq!(lead(&row, [1, 9]), f64::INFINITY);
    }
}
