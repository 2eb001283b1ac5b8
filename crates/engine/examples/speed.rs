//! Tokens per second of a model with random weights in a given shape, held in memory.
//!
//!     cargo run --release -p lathe-engine --example speed -- tinyllama q8_0 2 512 64
//!
//! Arguments: shape (`tinyllama`, `mistral`, or a path to a `config.json`), format, threads, prompt tokens,
//! generated tokens, sequences. Prints each of five rounds, prefill and decode, then the medians.

use std::{collections::HashMap, error::Error, fs, time::Instant};

use lathe_api::{Engine, Event, Flow, Request, Sampling};
use lathe_engine::{Native, Options};
use lathe_formats::{Blocks, by_name};
use lathe_models::{Config, Kind, Spec, Weight, read_config};
use serde_json::{Value, json};

const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text = |i: usize, default: &str| arguments.get(i).map_or(default, |a| a).to_owned();
    let number = |i: usize, default: usize| text(i, &default.to_string()).parse::<usize>();
    let (shape, format) = (text(0, "tinyllama"), text(1, "q8_0"));
    let (threads, prompt, generated) = (number(2, 2)?, number(3, 512)?, number(4, 64)?);
    let sequences = number(5, 1)?;

    let spec = spec(&shape)?;
    let options = Options {
        threads,
        context: Some(prompt + generated),
        batch: sequences,
        chunk: 512,
        ..Options::default()
    };
    let started = Instant::now();
    let mut random = Random { format, threads, made: HashMap::new() };
    let mut source = |weight: &Weight| Ok(random.weight(weight));
    let native = Native::from_weights(spec.clone(), &mut source, &options)?;
    let info = native.info();
    println!(
        "{} parameters, {:.0} MB, {}, made in {:.1} s",
        spec.parameters(),
        info.weight_bytes as f64 / 1e6,
        info.device,
        started.elapsed().as_secs_f64()
    );
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (p, d) = trial(&native, prompt, generated, sequences)?;
        if round > 0 {
            println!("prefill {p:8.2} tokens/s   decode {d:8.2} tokens/s");
            prefill.push(p);
            decode.push(d);
        }
    }
    println!("median  {:8.2}            {:8.2}", median(prefill), median(decode));
    Ok(())
}

/// Prefill and decode rate of all sequences together.
fn trial(
    native: &Native,
    prompt: usize,
    generated: usize,
    sequences: usize,
) -> Result<(f64, f64), Box<dyn Error>> {
    let vocab = native.spec().vocab;
    let request = |s: usize| Request {
        prompt: (0..prompt).map(|i| ((i * 7919 + s * 104_729) % vocab) as u32).collect(),
        max_tokens: generated,
        sampling: Sampling::default(),
        stop_tokens: vec![],
        stop_strings: vec![],
        ignore_stop: true,
        grammar: None,
    };
    let requests: Vec<Request> = (0..sequences).map(request).collect();
    let started = Instant::now();
    let mut prefilled = started;
    let mut tokens = 0;
    native.generate_batch(&requests, &mut |_, event| {
        match event {
            Event::Prefilled { .. } => {
                prefilled = Instant::now();
                tokens = 0;
            }
            Event::Token { .. } => tokens += 1,
        }
        Flow::Continue
    })?;
    let (first, second) = (prefilled - started, prefilled.elapsed());
    // The first token of each sequence comes with its prefill.
    let decoded = (tokens as f64 - 1.0).max(0.0);
    Ok(((prompt * sequences) as f64 / first.as_secs_f64(), decoded / second.as_secs_f64()))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn spec(shape: &str) -> Result<Spec, Box<dyn Error>> {
    let llama = |width: u64, layers: u64, feed_forward: u64, kv_heads: u64| {
        json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": width,
            "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": kv_heads,
            "intermediate_size": feed_forward, "max_position_embeddings": 32768,
            "tie_word_embeddings": false,
        })
    };
    let config = match shape {
        "tinyllama" => llama(2048, 22, 5632, 4),
        "mistral" => llama(4096, 32, 14336, 8),
        path => serde_json::from_slice(&fs::read(path)?)?,
    };
    let Value::Object(map) = config else { return Err("config.json is no object".into()) };
    Ok(read_config(&Config::new(map))?.1)
}

/// Weights of a bell-like shape. One layer's are made and the others share its codes' values, in
/// memory of their own, so that every byte is read as from a real model.
struct Random {
    format: String,
    threads: usize,
    made: HashMap<(usize, usize, Kind), Blocks>,
}

impl Random {
    fn weight(&mut self, weight: &Weight) -> Blocks {
        let &Weight { rows, cols, kind, .. } = weight;
        if let Some(made) = self.made.get(&(rows, cols, kind)) {
            return Blocks { data: made.data.to_vec().into(), ..made.clone() };
        }
        let name = if kind == Kind::Vector { "f32" } else { self.format.as_str() };
        let format = by_name(name).expect("a format of the table");
        let spread = 1.0 / (cols as f32).sqrt();
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut uniform = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let mut bell = || match kind {
            Kind::Vector => 1.0,
            _ => (uniform() + uniform() + uniform()) * 2.0 * spread,
        };
        let values: Vec<f32> = (0..rows * cols).map(|_| bell()).collect();
        let blocks = format.encode(rows, cols, &values, self.threads).expect("finite weights");
        self.made.insert((rows, cols, kind), blocks.clone());
        blocks
    }
}
