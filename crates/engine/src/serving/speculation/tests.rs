//! Whatever is guessed, texts are those without guesses.

use std::{collections::HashMap, path::Path, sync::Arc};

use lathe_api::{Engine, Event, Flow, Grammar, Request, Sampling};
use lathe_base::Buf;
use lathe_files::Checkpoint;
use lathe_kernels::KvType;
use lathe_tokens::Tokenizer;

use super::{
    Ask, Guess, Name, Speculation, Speculator,
    proposer::{Price, Proposer},
};
use crate::{
    Native, Options,
    serving::{
        Distribution, Limits, LogProbs, LogProbsWanted, Rules, Scheduler, Service, Snapshot, Step,
        Submission, Update, derived_seed,
    },
};

fn native(checkpoint: &Checkpoint, options: &Options) -> Native {
    let tokenizer = Arc::new(Tokenizer::from_checkpoint(checkpoint).unwrap());
    let native = Native::load(checkpoint, tokenizer, options).unwrap();
    // Every guess is checked, or most tests would test nothing on a model this fast.
    native.learnt().eager = true;
    native
}

fn demo(options: &Options) -> Native {
    let files: Vec<(&str, Buf)> =
        lathe_demo::files().iter().map(|(name, bytes)| (*name, Buf::from_static(bytes))).collect();
    native(&Checkpoint::from_memory(&files).unwrap(), options)
}

fn tiny(name: &str, options: &Options) -> Native {
    let archs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs");
    native(&Checkpoint::open(&archs.join(name)).unwrap(), options)
}

fn options(batch: usize) -> Options {
    let speculation = Speculation::Lookup;
    Options { threads: 2, context: Some(64), batch, speculation, ..Options::default() }
}

fn prompt(length: usize, seed: usize) -> Vec<u32> {
    (0..length).map(|i| (3 + (i * 37 + seed * 11) % 150) as u32).collect()
}

fn request(prompt: &[u32], max_tokens: usize, sampling: Sampling) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_tokens,
        sampling,
        stop_tokens: vec![],
        stop_strings: vec![],
        ignore_stop: true,
        grammar: None,
    }
}

/// Greedy, drawn in several ways, and with penalties that count what was generated.
fn samplings() -> Vec<Sampling> {
    let hot = |seed| Sampling { temperature: 1.0, seed, ..Sampling::default() };
    vec![
        Sampling::default(),
        hot(1),
        Sampling { temperature: 0.6, top_k: 40, top_p: 0.9, min_p: 0.02, ..hot(2) },
        Sampling {
            repetition_penalty: 1.2,
            presence_penalty: 0.3,
            frequency_penalty: 0.2,
            ..hot(3)
        },
        Sampling { repetition_penalty: 1.3, ..Sampling::default() },
        Sampling { temperature: 0.3, ..hot(4) },
    ]
}

/// Each text's ids, its pieces one by one, and log probabilities.
type Texts = Vec<(Vec<u32>, Vec<String>, Vec<Option<LogProbs>>)>;

/// Runs submissions together to their ends.
fn run(
    native: &Native,
    rules: Rules,
    speculator: Speculator<'_>,
    all: &[Submission],
) -> (Vec<Texts>, Snapshot) {
    let tokenizer = native.tokenizer().map(Arc::as_ref);
    let mut scheduler =
        Scheduler::new(&native.executor, tokenizer, rules).with_speculator(speculator);
    for (id, submission) in all.iter().enumerate() {
        let grammar = native.grammar(&submission.request).unwrap();
        scheduler.submit(id as u64, submission.clone(), grammar).unwrap();
    }
    let mut texts: Vec<Texts> = all.iter().map(|one| vec![Default::default(); one.n]).collect();
    loop {
        let step = scheduler.step(&mut |id, update| {
            match update {
                Update::Token { text, id: token, piece, log_probs } => {
                    let text = &mut texts[id as usize][text];
                    text.0.push(token);
                    text.1.push(piece);
                    text.2.push(log_probs);
                }
                Update::Done(served) => drop(served.unwrap()),
                _ => {}
            }
            Flow::Continue
        });
        match step {
            Step::Worked => {}
            Step::Idle => break,
            Step::Stalled(error) => panic!("{error}"),
        }
    }
    let snapshot = scheduler.snapshot();
    assert_eq!(snapshot.used_pages(), 0);
    (texts, snapshot)
}

fn rules(native: &Native) -> Rules {
    let (sequences, step_tokens) = (native.batch, native.executor.chunk);
    Rules { sequences, step_tokens, share_prefixes: true, reserve: false }
}

fn off(all: &[Submission]) -> Vec<Submission> {
    let off = Some(Speculation::Off);
    all.iter().map(|one| Submission { speculation: off, ..one.clone() }).collect()
}

/// Guesses what a text will be, with a mistake now and then, or nonsense.
struct Oracle {
    /// Of each submission and text.
    texts: HashMap<Name, Vec<u32>>,
    /// After each so many right guesses a wrong one; 0 for nothing but wrong ones.
    right: usize,
    vocab: u32,
    calls: usize,
}

impl Proposer for Oracle {
    fn price(&self, _: &[&mut Ask<'_>]) -> Price {
        Price::default()
    }

    fn usual(&self, _: u8) -> f32 {
        0.5
    }

    fn propose(&mut self, asks: &mut [&mut Ask<'_>]) -> f64 {
        for ask in asks {
            self.calls += 1;
            let future = self.texts[&ask.name].iter().skip(ask.tokens.len()).copied();
            // The text may end before: anything may be guessed there.
            let future = future.chain(std::iter::repeat(1)).take(ask.most.min(1 + self.calls % 9));
            let wrong =
                |i: usize| self.right == 0 || (i + self.calls).is_multiple_of(self.right + 1);
            let guess = |(i, token): (usize, u32)| {
                let token = if wrong(i) { (token + 1) % self.vocab } else { token };
                Guess { token, class: 3 }
            };
            ask.guesses = future.enumerate().map(guess).collect();
        }
        0.0
    }

    fn forget(&mut self, _: Name) {}
}

/// Compares texts without guesses with those of oracles of every kind.
fn same_with_oracles(native: &Native, rules: Rules, all: &[Submission]) -> Vec<Snapshot> {
    let (plain, _) = run(native, rules, native.speculator(), &off(all));
    let vocab = native.spec().vocab as u32;
    let mut snapshots = Vec::new();
    for right in [0, 1, 4, 1000] {
        let mut texts = HashMap::new();
        for (id, (one, ids)) in all.iter().zip(&plain).enumerate() {
            for (text, (ids, ..)) in ids.iter().enumerate() {
                texts.insert((id as u64, text), [&one.request.prompt[..], ids].concat());
            }
        }
        let oracle = Oracle { texts, right, vocab, calls: right };
        let learnt = native.learnt().clone();
        let speculator = Speculator::with_proposer(Box::new(oracle), learnt);
        let (found, snapshot) = run(native, rules, speculator, all);
        assert!(found == plain, "{right}: {found:?} is not {plain:?}");
        assert!(snapshot.proposed_tokens > 0, "{snapshot:?}");
        assert_eq!(snapshot.accepted_tokens > 0, right > 0, "{snapshot:?}");
        snapshots.push(snapshot);
    }
    snapshots
}

#[test]
fn texts_are_those_without_guesses_for_every_cache_and_way_of_sampling() {
    for kv in KvType::ALL {
        let native = demo(&Options { kv, context: Some(160), ..options(6) });
        let all: Vec<Submission> = samplings()
            .into_iter()
            .enumerate()
            .map(|(i, sampling)| request(&prompt(20 + 7 * i, i), 90, sampling).into())
            .collect();
        let snapshots = same_with_oracles(&native, rules(&native), &all);
        let passes: Vec<u64> = snapshots.iter().map(|snapshot| snapshot.steps).collect();
        assert!(passes[3] * 2 < passes[0], "{passes:?}");
        // And by look-up, alone and together, through the engine's own calls.
        for one in &all {
            let (plain, _) =
                run(&native, rules(&native), native.speculator(), &off(std::slice::from_ref(one)));
            let mut ids = Vec::new();
            native
                .generate(&one.request, &mut |event| {
                    if let Event::Token { id, .. } = event {
                        ids.push(id);
                    }
                    Flow::Continue
                })
                .unwrap();
            assert_eq!(ids, plain[0][0].0, "{kv:?}");
        }
    }
}

#[test]
fn texts_are_those_without_guesses_where_pages_lack_and_ropes_change() {
    let all = [
        ("llama", KvType::F16),
        ("llama", KvType::Int4),
        ("mistral", KvType::Int8),
        ("mistral", KvType::F16),
        ("gemma3", KvType::F16),
        ("gemma3", KvType::Int8),
        ("mixtral", KvType::F16),
        ("phi3-longrope", KvType::F16),
        ("phi3-longrope", KvType::Int8),
        ("llama-dynamic", KvType::F16),
        ("llama-dynamic", KvType::Int4),
    ];
    for (name, kv) in all {
        for share_prefixes in [true, false] {
            // Six sequences of two pages each at their ends, and seven pages.
            let native = tiny(name, &Options { kv, cache: Some(7 * 32), chunk: 48, ..options(6) });
            let hot = |seed| Sampling { temperature: 1.0, seed, ..Sampling::default() };
            let all: Vec<Submission> = (0..6)
                .map(|i| request(&prompt(9 + 3 * i, i), 50 - 4 * i, hot(i as u64)).into())
                .collect();
            let rules = Rules { share_prefixes, ..rules(&native) };
            let snapshots = same_with_oracles(&native, rules, &all);
            assert!(snapshots.iter().all(|snapshot| snapshot.preemptions > 0), "{name}");
        }
    }
}

#[test]
fn several_texts_log_probabilities_and_stops_are_those_without_guesses() {
    for of in [Distribution::Model, Distribution::Sampled] {
        let native = demo(&Options { kv: KvType::Int8, context: Some(200), ..options(4) });
        let mut one = request(
            &prompt(37, 2),
            120,
            Sampling { temperature: 0.8, seed: 5, ..Sampling::default() },
        );
        let log_probs = Some(LogProbsWanted { top: 3, of });
        let several = Submission { n: 3, log_probs, ..one.clone().into() };
        same_with_oracles(&native, rules(&native), std::slice::from_ref(&several));
        let (texts, _) = run(&native, rules(&native), native.speculator(), &off(&[several]));
        // A string and a token of the first text, the token of the third too.
        let whole: String = texts[0][0].1.concat();
        let at = whole.char_indices().nth(whole.chars().count() / 2).unwrap().0;
        one.stop_strings = vec![whole[at..].chars().take(4).collect()];
        one.ignore_stop = false;
        let by_string = Submission { n: 3, log_probs, ..one.clone().into() };
        same_with_oracles(&native, rules(&native), &[by_string]);
        one.stop_strings.clear();
        one.stop_tokens = vec![texts[0][0].0[60]];
        let by_token = Submission { n: 3, log_probs, ..one.into() };
        same_with_oracles(&native, rules(&native), &[by_token]);
    }
}

#[test]
fn texts_held_to_a_grammar_are_those_without_guesses() {
    let native = demo(&Options { context: Some(160), ..options(4) });
    let all: Vec<Submission> = samplings()
        .into_iter()
        .enumerate()
        .map(|(i, sampling)| {
            let mut one = request(&prompt(20, i), 60, sampling);
            one.ignore_stop = false;
            one.grammar = Some(Grammar::Regex("([a-f]{3,9} [0-9]{2}, )*(yes|no)".to_owned()));
            one.into()
        })
        .collect();
    same_with_oracles(&native, rules(&native), &all);
    let (plain, _) = run(&native, rules(&native), native.speculator(), &off(&all));
    let native = native.with_draft(demo(&Options { context: Some(160), ..options(4) })).unwrap();
    let (found, snapshot) = run(&native, rules(&native), native.speculator(), &all);
    assert!(found == plain && snapshot.proposed_tokens > 0, "{snapshot:?}");
}

#[test]
fn a_service_gives_the_same_texts_with_look_up_and_shares_their_pages() {
    let native = Arc::new(demo(&Options {
        kv: KvType::Int4,
        context: Some(256),
        cache: Some(16 * 32),
        ..options(4)
    }));
    let service = Service::start(Arc::clone(&native), Limits::default()).unwrap();
    let greedy = |seed| request(&prompt(40, seed), 150, Sampling::default());
    let submissions: Vec<Submission> = (0..6).map(|i| greedy(i % 3).into()).collect();
    let (plain, _) = run(&native, rules(&native), native.speculator(), &off(&submissions));
    for round in 0..2 {
        let responses: Vec<_> =
            submissions.iter().map(|one| service.submit(one.clone()).unwrap()).collect();
        for (response, plain) in responses.into_iter().zip(&plain) {
            let ids: Vec<u32> = response
                .filter_map(|update| match update {
                    Update::Token { id, .. } => Some(id),
                    _ => None,
                })
                .collect();
            assert_eq!(ids, plain[0].0, "round {round}");
        }
    }
    let snapshot = service.snapshot();
    assert!(snapshot.accepted_tokens > 0, "{snapshot:?}");
    assert!(snapshot.accepted_tokens <= snapshot.proposed_tokens);
    // A turn that goes on from a text that was guessed at finds that text alone in the cache.
    let turn = request(&[&greedy(0).prompt[..], &plain[0][0].0].concat(), 30, Sampling::default());
    let (after, _) =
        run(&native, rules(&native), native.speculator(), &off(&[turn.clone().into()]));
    let ids: Vec<u32> = service
        .submit(turn.into())
        .unwrap()
        .filter_map(|update| match update {
            Update::Token { id, .. } => Some(id),
            _ => None,
        })
        .collect();
    assert_eq!(ids, after[0][0].0);
}

#[test]
fn guesses_take_no_pages_from_others_and_give_theirs_back() {
    // Two texts that fill the cache to the last page.
    let native = tiny("llama", &Options { cache: Some(4 * 32), ..options(2) });
    let all: Vec<Submission> =
        (0..2).map(|i| request(&prompt(20, i), 44, Sampling::default()).into()).collect();
    for snapshot in same_with_oracles(&native, rules(&native), &all) {
        assert_eq!(snapshot.preemptions, 0, "{snapshot:?}");
        assert_eq!(snapshot.generated_tokens, 88);
    }
}

#[test]
fn seeds_of_several_texts_are_derived_with_guesses_too() {
    let native = demo(&Options { context: Some(128), ..options(3) });
    let hot = Sampling { temperature: 0.2, seed: 9, ..Sampling::default() };
    let one = request(&prompt(32, 1), 60, hot);
    let all = Submission { n: 3, ..one.clone().into() };
    let (texts, snapshot) = run(&native, rules(&native), native.speculator(), &[all]);
    assert!(snapshot.proposed_tokens > 0);
    for (text, (ids, ..)) in texts[0].iter().enumerate() {
        let mut single = one.clone();
        single.sampling.seed = derived_seed(one.sampling.seed, text);
        let (plain, _) = run(&native, rules(&native), native.speculator(), &off(&[single.into()]));
        assert_eq!(*ids, plain[0][0].0);
    }
}

#[test]
fn a_draft_that_is_the_model_itself_is_always_right() {
    let native = demo(&Options { context: Some(160), kv: KvType::Int8, ..options(6) });
    // With the same cache it computes the same.
    let exact = demo(&Options { context: Some(160), ..options(6) });
    let all: Vec<Submission> = samplings()
        .into_iter()
        .enumerate()
        .map(|(i, sampling)| request(&prompt(20 + 7 * i, i), 90, sampling).into())
        .collect();
    for (native, always) in [(exact, true), (native, false)] {
        let (plain, _) = run(&native, rules(&native), native.speculator(), &off(&all));
        let native =
            native.with_draft(demo(&Options { context: Some(160), ..options(6) })).unwrap();
        let (found, snapshot) = run(&native, rules(&native), native.speculator(), &all);
        assert!(found == plain);
        assert!(snapshot.proposed_tokens > 300, "{snapshot:?}");
        let share = snapshot.accepted_tokens as f64 / snapshot.proposed_tokens as f64;
        assert!(share > if always { 0.99 } else { 0.4 }, "{share}");
    }
}

#[test]
fn a_draft_with_few_pages_and_a_short_context_changes_no_text() {
    let all: Vec<Submission> = (0..6)
        .map(|i| {
            let hot = Sampling { temperature: 1.0, seed: i, ..Sampling::default() };
            let one = request(&prompt(9 + 3 * i as usize, i as usize), 50 - 4 * i as usize, hot);
            Submission { n: 1 + i as usize % 2, ..one.into() }
        })
        .collect();
    let pairs = [("llama", "llama"), ("phi3-longrope", "mistral"), ("llama", "llama-dynamic")];
    for (name, draft) in pairs {
        let native = tiny(name, &Options { cache: Some(7 * 32), ..options(6) });
        let draft = tiny(draft, &Options { cache: Some(3 * 32), context: Some(40), ..options(2) });
        let (plain, _) = run(&native, rules(&native), native.speculator(), &off(&all));
        let native = native.with_draft(draft).unwrap();
        let (found, snapshot) = run(&native, rules(&native), native.speculator(), &all);
        assert!(found == plain, "{name}");
        assert!(snapshot.proposed_tokens > 0 && snapshot.preemptions > 0, "{snapshot:?}");
        let draft = native.draft.as_ref().unwrap();
        assert_eq!(draft.executor.pages.counts().free, 3);
    }
}

#[test]
fn a_draft_with_other_tokens_or_another_cache_is_refused() {
    let fits = |draft: Native| demo(&options(1)).with_draft(draft).map(drop);
    let other = fits(tiny("llama", &options(1))).unwrap_err().to_string();
    assert!(other.contains("token"), "{other}");
    let coded = fits(demo(&Options { kv: KvType::Int4, ..options(1) })).unwrap_err().to_string();
    assert!(coded.contains("f16"), "{coded}");
    fits(demo(&options(1))).unwrap();
}
