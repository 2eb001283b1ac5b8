//! What callers rely on: the cut of a run and its neighbours change nothing, limits are errors,
//! streams end where they should.

use std::{path::Path, sync::Arc};

use lathe_api::{Engine, Error, Event, Finish, Flow, Request, Sampling, Usage};
use lathe_base::Buf;
use lathe_engine::{KvType, Native, Options, Precision};
use lathe_files::Checkpoint;
use lathe_tokens::Tokenizer;
use serde_json::Value;

fn golden(name: &str) -> Checkpoint {
    let archs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs");
    Checkpoint::open(&archs.join(name)).unwrap()
}

fn load(name: &str, options: Options) -> Native {
    let checkpoint = golden(name);
    let tokenizer = Arc::new(Tokenizer::from_checkpoint(&checkpoint).unwrap());
    Native::load(&checkpoint, tokenizer, &options).unwrap()
}

fn options() -> Options {
    let context = Some(64);
    Options {
        threads: 2,
        context,
        kv: KvType::F32,
        precision: Precision::Exact,
        ..Options::default()
    }
}

fn request(prompt: &[u32], max_tokens: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_tokens,
        sampling: Sampling::default(),
        stop_tokens: vec![],
        stop_strings: vec![],
        ignore_stop: false,
        grammar: None,
    }
}

/// Ids, text and usage of one request.
fn run(native: &Native, request: &Request) -> (Vec<u32>, String, Usage) {
    let (mut ids, mut text) = (Vec::new(), String::new());
    let usage = native.generate(request, &mut |event| {
        if let Event::Token { id, text: piece } = event {
            ids.push(id);
            text.push_str(piece);
        }
        Flow::Continue
    });
    (ids, text, usage.unwrap())
}

fn prompt(length: usize, seed: usize) -> Vec<u32> {
    (0..length).map(|i| (3 + (i * 37 + seed * 11) % 150) as u32).collect()
}

/// One of each way to see the past: plain, windowed, capped, and rope that depends on length.
const MODELS: [&str; 5] = ["llama", "mistral", "gemma2", "gemma3", "phi3-longrope"];

#[test]
fn logits_do_not_depend_on_how_a_run_is_cut() {
    for name in MODELS {
        let ids = prompt(45, 1);
        let whole = load(name, options());
        let expected = whole.scorer().unwrap().feed(&ids).unwrap();
        for chunk in [1, 3, 64] {
            for step in [1, 3, 45] {
                let native = load(name, Options { chunk, ..options() });
                let mut scorer = native.scorer().unwrap();
                let logits: Vec<f32> =
                    ids.chunks(step).flat_map(|ids| scorer.feed(ids).unwrap().values).collect();
                // Past 32 tokens this one is rotated anew: rows before were of the shorter run.
                let from =
                    if name == "phi3-longrope" && step < 45 { 32 * expected.vocab } else { 0 };
                assert_eq!(logits[from..], expected.values[from..], "{name}, {chunk}, {step}");
            }
        }
    }
}

#[test]
fn logits_do_not_depend_on_how_a_run_is_cut_with_any_type_of_cache() {
    let ids = prompt(60, 1);
    for kv in KvType::ALL {
        for name in ["llama", "mistral"] {
            let whole = load(name, Options { kv, ..options() });
            let expected = whole.scorer().unwrap().feed(&ids).unwrap();
            for (chunk, step, threads) in [(1, 60, 1), (20, 60, 3), (64, 1, 2), (7, 33, 2)] {
                let native = load(name, Options { kv, chunk, threads, ..options() });
                let mut scorer = native.scorer().unwrap();
                let logits: Vec<f32> =
                    ids.chunks(step).flat_map(|ids| scorer.feed(ids).unwrap().values).collect();
                assert_eq!(logits, expected.values, "{kv:?} {name}, {chunk}, {step}");
            }
        }
    }
}

#[test]
fn logits_are_the_same_bits_at_any_number_of_threads() {
    for name in MODELS {
        let of = |threads| {
            let native = load(name, Options { threads, ..options() });
            native.scorer().unwrap().feed(&prompt(40, 2)).unwrap()
        };
        assert_eq!(of(1), of(2), "{name}");
        assert_eq!(of(1), of(5), "{name}");
    }
}

#[test]
fn a_batch_generates_what_each_request_does_alone() {
    let coded = [("llama", KvType::Int4), ("mistral", KvType::Int8)];
    for (name, kv) in MODELS.map(|name| (name, KvType::F32)).into_iter().chain(coded) {
        let native = load(name, Options { batch: 3, chunk: 16, kv, ..options() });
        let requests: Vec<Request> = [(20, 14), (1, 30), (33, 3), (7, 20), (2, 0)]
            .iter()
            .enumerate()
            .map(|(i, (length, most))| {
                let sampling = Sampling { temperature: 1.0, seed: i as u64, ..Sampling::default() };
                Request { sampling, ..request(&prompt(*length, i), *most) }
            })
            .collect();
        let mut together = vec![Vec::new(); requests.len()];
        let usages = native
            .generate_batch(&requests, &mut |index, event| {
                if let Event::Token { id, .. } = event {
                    together[index].push(id);
                }
                Flow::Continue
            })
            .unwrap();
        for (i, request) in requests.iter().enumerate() {
            let (alone, _, usage) = run(&native, request);
            assert_eq!(alone.len(), request.max_tokens);
            assert_eq!(together[i], alone, "{name}, request {i}");
            assert_eq!(usages[i], usage, "{name}, request {i}");
        }
    }
}

#[test]
fn greedy_text_follows_the_highest_logit_of_a_fresh_pass() {
    // Over the length at which this model's rope changes.
    for name in ["llama", "phi3-longrope"] {
        let native = load(name, options());
        let (ids, _, _) = run(&native, &request(&prompt(28, 3), 10));
        let mut sequence = prompt(28, 3);
        for id in ids {
            let logits = native.scorer().unwrap().feed(&sequence).unwrap();
            let last = logits.rows().last().unwrap();
            let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
            assert_eq!(id as usize, best, "{name} at {}", sequence.len());
            sequence.push(id);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_text_at_any_number_of_threads() {
    let text = |threads, seed| {
        let native = load("qwen3", Options { threads, ..options() });
        let sampling = Sampling { temperature: 1.0, top_p: 0.9, seed, ..Sampling::default() };
        run(&native, &Request { sampling, ..request(&prompt(8, 4), 24) }).0
    };
    assert_eq!(text(1, 5), text(3, 5));
    assert_ne!(text(1, 5), text(1, 6));
}

#[test]
fn a_cache_in_fewer_bits_is_close_to_one_in_f32() {
    // Mean squares of what is off, where the logits' own is about 4; f16 keeps 11 bits, bf16 8,
    // FP8 4.
    let allowed = [
        (KvType::F16, 1e-4),
        (KvType::Bf16, 4e-3),
        (KvType::Int8, 4e-3),
        (KvType::Fp8, 0.5),
        (KvType::Int4, 0.5),
    ];
    for name in MODELS {
        let of = |kv| {
            let native = load(name, Options { kv, ..options() });
            native.scorer().unwrap().feed(&prompt(64, 2)).unwrap().values
        };
        let exact = of(KvType::F32);
        for (kv, most) in allowed {
            let squares: f32 = of(kv).iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum();
            let mean = squares / exact.len() as f32;
            assert!(mean > 0.0 && mean < most, "{name} {kv:?}: {mean}");
        }
    }
}

#[test]
fn more_sequences_than_a_coded_cache_has_places_for_are_refused() {
    let native = load("llama", Options { kv: KvType::Int4, batch: 2, ..options() });
    let mut scorers: Vec<_> = (0..3).map(|_| native.scorer().unwrap()).collect();
    for scorer in &mut scorers {
        scorer.feed(&[5]).unwrap();
    }
    let refused = native.scorer().unwrap().feed(&[5]).unwrap_err();
    assert!(refused.to_string().contains("--batch"), "{refused}");
    drop(scorers);
    native.scorer().unwrap().feed(&[5]).unwrap();
}

#[test]
fn prompt_and_generation_beyond_the_context_are_refused() {
    let native = load("llama", options());
    let most = native.generate(&request(&prompt(60, 0), 5), &mut |_| Flow::Continue);
    assert!(matches!(most, Err(Error::ContextExceeded { needed: 65, context: 64 })));
    assert_eq!(run(&native, &request(&prompt(60, 0), 4)).2.generated_tokens, 4);
    let mut scorer = native.scorer().unwrap();
    scorer.feed(&prompt(64, 0)).unwrap();
    assert!(matches!(scorer.feed(&[5]), Err(Error::ContextExceeded { needed: 65, .. })));
    scorer.reset();
    scorer.feed(&[5]).unwrap();
}

#[test]
fn a_full_cache_is_an_error_and_dropped_sequences_make_room() {
    let native = load("llama", options());
    let mut first = native.scorer().unwrap();
    first.feed(&prompt(64, 0)).unwrap();
    let mut second = native.scorer().unwrap();
    let full = second.feed(&[5]).unwrap_err();
    assert!(full.to_string().contains("KV cache"), "{full}");
    assert!(native.generate(&request(&[5], 1), &mut |_| Flow::Continue).is_err());
    drop(first);
    second.feed(&prompt(64, 0)).unwrap();
}

#[test]
fn requests_wait_for_room_instead_of_failing() {
    // Pages for two full sequences, places for two, five requests.
    let native = load("llama", Options { batch: 2, ..options() });
    let requests: Vec<Request> = (0..5).map(|i| request(&prompt(30, i), 30)).collect();
    let usages = native.generate_batch(&requests, &mut |_, _| Flow::Continue).unwrap();
    assert!(usages.iter().all(|usage| usage.generated_tokens == 30));
}

#[test]
fn a_stop_token_ends_the_text_and_is_not_reported() {
    let native = load("llama", options());
    let (ids, _, _) = run(&native, &request(&prompt(9, 1), 12));
    let stop = ids[5];
    let before = ids.iter().position(|id| *id == stop).unwrap();
    let mut stopping = Request { stop_tokens: vec![stop], ..request(&prompt(9, 1), 12) };
    let (stopped, _, usage) = run(&native, &stopping);
    assert_eq!(stopped, ids[..before]);
    assert_eq!((usage.finish, usage.generated_tokens), (Finish::Stop, before));
    stopping.ignore_stop = true;
    assert_eq!(run(&native, &stopping).2.finish, Finish::Length);
}

#[test]
fn a_stop_string_ends_the_text_before_it_even_across_tokens() {
    let native = load("llama", options());
    let (_, text, usage) = run(&native, &request(&prompt(9, 1), 16));
    assert_eq!(usage.finish, Finish::Length);
    let letters: Vec<(usize, char)> = text.char_indices().collect();
    assert!(letters.len() >= 8, "too little text to cut: {text:?}");
    // Every run of three characters is a stop string once.
    for three in letters.windows(4) {
        let stop = &text[three[0].0..three[3].0];
        let stopping = Request { stop_strings: vec![stop.into()], ..request(&prompt(9, 1), 16) };
        let (_, stopped, usage) = run(&native, &stopping);
        assert_eq!(stopped, text[..text.find(stop).unwrap()], "stop at {stop:?} of {text:?}");
        assert_eq!(usage.finish, Finish::Stop);
    }
}

#[test]
fn the_pieces_of_a_stream_are_the_decoded_text() {
    let native = load("qwen3", options());
    let sampling = Sampling { temperature: 1.5, seed: 3, ..Sampling::default() };
    let (ids, text, _) = run(&native, &Request { sampling, ..request(&prompt(5, 2), 40) });
    assert_eq!(text, native.tokenizer().unwrap().decode(&ids));
}

#[test]
fn a_caller_that_says_stop_ends_its_request_only() {
    let native = load("llama", Options { batch: 2, ..options() });
    let requests = [request(&prompt(5, 0), 20), request(&prompt(5, 1), 20)];
    let mut seen = [0, 0];
    let usages = native
        .generate_batch(&requests, &mut |index, event| {
            seen[index] += usize::from(matches!(event, Event::Token { .. }));
            if index == 0 && seen[0] == 3 { Flow::Stop } else { Flow::Continue }
        })
        .unwrap();
    assert_eq!(seen, [3, 20]);
    assert_eq!((usages[0].finish, usages[0].generated_tokens), (Finish::Cancelled, 3));
    assert_eq!(usages[1].finish, Finish::Length);
}

#[test]
fn the_prompt_is_reported_once_before_the_first_token() {
    let native = load("llama", Options { chunk: 4, ..options() });
    let mut order = Vec::new();
    native
        .generate(&request(&prompt(11, 0), 2), &mut |event| {
            order.push(match event {
                Event::Prefilled { tokens } => tokens,
                Event::Token { .. } => 0,
            });
            Flow::Continue
        })
        .unwrap();
    assert_eq!(order, [11, 0, 0]);
}

#[test]
fn rejects_requests_that_cannot_be_run() {
    let native = load("llama", options());
    let refused = |request: Request| {
        native.generate(&request, &mut |_| Flow::Continue).unwrap_err().to_string()
    };
    assert!(refused(request(&[], 5)).contains("empty"));
    assert!(refused(request(&[100_000], 5)).contains("vocabulary"));
    assert!(refused(request(&[5], usize::MAX)).contains("context"));
    let hot = Sampling { temperature: -1.0, ..Sampling::default() };
    assert!(refused(Request { sampling: hot, ..request(&[5], 5) }).contains("temperature"));
    assert!(native.scorer().unwrap().feed(&[100_000]).is_err());
}

#[test]
fn absurd_sizes_are_refused_before_memory_is_asked_for() {
    let checkpoint = golden("llama");
    let load = |options| Native::load(&checkpoint, None, &options).map(|_| ());
    assert!(load(Options { context: Some(0), ..options() }).is_err());
    assert!(load(Options { context: Some(usize::MAX / 4), ..options() }).is_err());
    assert!(load(Options { batch: usize::MAX, ..options() }).is_err());
}

/// The golden Llama's folder in memory, with its configuration and weights altered.
fn altered(config: impl Fn(&mut Value), weights: impl Fn(&mut Vec<u8>)) -> Checkpoint {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs/llama");
    let mut json: Value =
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    config(&mut json);
    let mut bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    weights(&mut bytes);
    let files = [
        ("config.json", serde_json::to_vec(&json).unwrap().into()),
        ("model.safetensors", bytes.into()),
    ];
    Checkpoint::from_memory(&files).unwrap()
}

fn refused(checkpoint: &Checkpoint) -> String {
    Native::load(checkpoint, None, &options()).unwrap_err().to_string()
}

#[test]
fn weights_that_do_not_fit_the_configuration_are_named_with_both_shapes() {
    let wide = altered(|config| config["intermediate_size"] = 96.into(), |_| {});
    let error = refused(&wide);
    assert!(error.contains("model.layers.0.mlp.down_proj.weight"), "{error}");
    assert!(error.contains("[48, 90]") && error.contains("[48, 96]"), "{error}");

    let deep = altered(|config| config["num_hidden_layers"] = 3.into(), |_| {});
    let error = refused(&deep);
    assert!(error.contains("no tensor `model.layers.2."), "{error}");
}

#[test]
fn a_norm_with_nan_is_refused_by_name() {
    let poisoned = altered(
        |_| {},
        |bytes| {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
            let at = header["model.norm.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
            bytes[8 + length + at..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        },
    );
    let error = refused(&poisoned);
    assert!(error.contains("model.norm.weight") && error.contains("NaN"), "{error}");
}

#[test]
fn weights_full_of_nan_end_a_request_with_an_error() {
    let nan = altered(
        |_| {},
        |bytes| {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
            let range = &header["lm_head.weight"]["data_offsets"];
            let at = |i: usize| 8 + length + range[i].as_u64().unwrap() as usize;
            for number in bytes[at(0)..at(1)].chunks_exact_mut(4) {
                number.copy_from_slice(&f32::NAN.to_le_bytes());
            }
        },
    );
    let native = Native::load(&nan, None, &options()).unwrap();
    let error = native.generate(&request(&[5], 3), &mut |_| Flow::Continue).unwrap_err();
    assert!(error.to_string().contains("NaN"), "{error}");
}

#[test]
fn weights_that_find_no_room_stay_in_their_file_and_change_no_text() {
    let checkpoint = golden("llama/model.gguf");
    let load = |max_memory| {
        let usual = Options { threads: 2, context: Some(64), ..Options::default() };
        Native::load(&checkpoint, None, &Options { max_memory, ..usual })
    };
    let request = request(&prompt(40, 3), 20);
    let whole = load(None).unwrap();
    assert_eq!(whole.streamed(), 0);
    let Err(lathe_engine::Error::NothingLeft { needed, allowed: 1 }) = load(Some(1)) else {
        panic!("one byte is not enough");
    };
    let weights = whole.info().weight_bytes;
    for share in [0, 1, 2] {
        let native = load(Some(needed + 1 + share * weights / 3)).unwrap();
        let streamed = native.streamed();
        assert!(streamed > weights / 8 && streamed < weights, "{streamed} of {weights}");
        assert_eq!(native.info().weight_bytes, weights);
        assert_eq!(run(&native, &request), run(&whole, &request));
    }
    assert_eq!(load(Some(needed + weights)).unwrap().streamed(), 0);
}

#[test]
fn weights_that_lie_in_no_file_are_refused_where_they_find_no_room() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs/llama");
    let names = ["config.json", "model.safetensors"];
    let files = names.map(|name| (name, Buf::from(std::fs::read(path.join(name)).unwrap())));
    let checkpoint = Checkpoint::from_memory(&files).unwrap();
    let options = Options { context: Some(64), ..Options::default() };
    let load =
        |max_memory| Native::load(&checkpoint, None, &Options { max_memory, ..options.clone() });
    let Err(lathe_engine::Error::NothingLeft { needed, .. }) = load(Some(1)) else {
        panic!("one byte is not enough");
    };
    assert!(matches!(load(Some(needed + 1)), Err(lathe_engine::Error::NoRoom)));
}
