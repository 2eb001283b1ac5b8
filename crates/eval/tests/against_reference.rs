//! Comparisons of mock models whose logits are known, against results in closed form and against a
//! naive second implementation.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use lathe_adapters::mock::{Distribution, Mock, Options};
use lathe_api::Engine;
use lathe_base::{Progress, Silent};
use lathe_eval::{
    CompareOptions, Convention, Encoder, Error, Pass, PassFigures, Plan, ReadOptions, Role,
    Subject, Texts, Units, compare,
};
use lathe_stats::Bootstrap;

const V: usize = 61;
const BOS: u32 = 60;

/// Characters are tokens 0 to 59.
fn letters(text: &str) -> Result<Vec<u32>, String> {
    Ok(text.bytes().filter(|b| !b.is_ascii_whitespace()).map(|b| u32::from(b % 60)).collect())
}

const ENCODER: Encoder<'static> = Encoder { encode: &letters, bos: Some(BOS) };

fn mock(distribution: Distribution) -> Mock {
    Mock::new(Options { vocab: V, context: 128, distribution, ..Options::default() }).unwrap()
}

fn model(seed: u64) -> Distribution {
    Distribution::Hashed { seed, spread: 3.0 }
}

/// A slightly damaged copy of `model(seed)`.
fn damaged(seed: u64, spread: f32) -> Distribution {
    Distribution::Perturbed { of: Box::new(model(seed)), seed: 99, spread }
}

fn texts(documents: usize) -> Texts {
    let body = |d: usize| -> String {
        (0..40 + 17 * (d % 5)).map(|i| char::from(b'a' + ((i * i + 7 * d) % 23) as u8)).collect()
    };
    let text: Vec<String> = (0..documents).map(body).collect();
    let text = text.join("\n<|endoftext|>\n");
    Texts::from_text(Path::new("t.txt"), text.as_bytes(), &ReadOptions::default()).unwrap()
}

type Other<'a> = (&'a str, Role, &'a Mock);

fn run(base: &Mock, others: &[Other<'_>], texts: &Texts, plan: &Plan) -> Pass {
    let options = CompareOptions { chunk: 7, threads: 2 };
    try_run(base, others, (texts, plan), &options, &Silent).unwrap()
}

fn try_run(
    base: &Mock,
    others: &[Other<'_>],
    (texts, plan): (&Texts, &Plan),
    options: &CompareOptions,
    progress: &dyn Progress,
) -> Result<Pass, Error> {
    let base = Subject { name: "base", role: Role::Base, engine: base };
    let others: Vec<Subject<'_>> =
        others.iter().map(|&(name, role, engine)| Subject { name, role, engine }).collect();
    compare(&base, &others, texts, plan, options, progress)
}

fn documents_plan(texts: &Texts) -> Plan {
    Plan::new(Convention::Documents, texts, ENCODER, 128).unwrap()
}

fn figures(pass: &Pass) -> PassFigures {
    PassFigures::new(pass, &Bootstrap::default()).unwrap()
}

/// Every row of probabilities of a sequence, computed the plain way.
fn probabilities(model: &Mock, tokens: &[u32]) -> Vec<Vec<f64>> {
    let logits = model.scorer().unwrap().feed(tokens).unwrap();
    logits
        .rows()
        .map(|row| {
            let weights: Vec<f64> = row.iter().map(|&x| f64::from(x).exp()).collect();
            let total: f64 = weights.iter().sum();
            weights.iter().map(|w| w / total).collect()
        })
        .collect()
}

fn near(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-10 * b.abs().max(1e-3), "{a} is not {b}");
}

#[test]
fn a_uniform_model_has_the_perplexity_of_its_vocabulary_in_every_convention() {
    let (texts, uniform) = (texts(12), mock(Distribution::Uniform));
    for convention in Convention::all(128) {
        let plan = Plan::new(convention, &texts, ENCODER, 128).unwrap();
        let figures = figures(&run(&uniform, &[], &texts, &plan));
        near(figures.models[0].perplexity.point, V as f64);
        assert_eq!(figures.models[0].tokens, plan.scored() as u64);
    }
}

#[test]
fn two_constant_models_have_their_divergence_in_closed_form() {
    let texts = texts(10);
    // p: one token with ten times the weight of any other; q: uniform.
    let mut logits = vec![0.0; V];
    logits[3] = 10.0_f32.ln();
    let (p, q) = (mock(Distribution::Constant(logits)), mock(Distribution::Uniform));
    let plan = documents_plan(&texts);
    let pass = run(&p, &[("flat", Role::Candidate, &q)], &texts, &plan);
    let weight = f64::from(10.0_f32.ln()).exp();
    let total = weight + 60.0;
    let expected = (V as f64).ln() - total.ln() + weight / total * weight.ln();
    let figures = figures(&pass);
    let versus = figures.models[1].versus.as_ref().unwrap();
    near(versus.kl.point, expected);
    near(versus.kl_max, expected);
    assert!((versus.kl_p99.point / expected - 1.0).abs() < 0.045);
    // The uniform model's first largest logit is token 0, not 3.
    assert_eq!((versus.same_top.point, versus.flips.point), (0.0, 1.0));
    near(versus.delta_top.point, 1.0 / V as f64 - weight / total);
}

#[test]
fn sums_agree_with_a_naive_reference_in_every_convention() {
    let texts = texts(9);
    let (base, other) = (mock(model(1)), mock(damaged(1, 0.7)));
    for convention in Convention::all(64) {
        let plan = Plan::new(convention, &texts, ENCODER, 64).unwrap();
        let pass = run(&base, &[("other", Role::Candidate, &other)], &texts, &plan);
        for (i, segment) in plan.segments.iter().enumerate() {
            let p = probabilities(&base, &segment.tokens);
            let q = probabilities(&other, &segment.tokens);
            let (mut nll, mut kl, mut same, mut delta) = (0.0, 0.0, 0, 0.0);
            for t in segment.first_scored..segment.tokens.len() {
                let (p, q, next) = (&p[t - 1], &q[t - 1], segment.tokens[t] as usize);
                nll -= q[next].ln();
                kl += p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
                let top = |p: &[f64]| (0..V).fold(0, |b, i| if p[i] > p[b] { i } else { b });
                same += u32::from(top(p) == top(q));
                delta += q[next] - p[next];
            }
            let sums = pass.models[1].against[i];
            near(pass.models[1].nll[i], nll);
            near(sums.kl, kl);
            near(sums.delta_p, delta);
            assert_eq!(sums.same_top, same);
        }
    }
}

#[test]
fn a_model_does_not_differ_from_itself_at_all() {
    let (texts, a, b) = (texts(10), mock(model(4)), mock(model(4)));
    let plan = documents_plan(&texts);
    let figures = figures(&run(&a, &[("copy", Role::Candidate, &b)], &texts, &plan));
    let versus = figures.models[1].versus.as_ref().unwrap();
    assert_eq!((versus.kl.point, versus.kl_max, versus.kl_p99.point), (0.0, 0.0, 0.0));
    assert_eq!((versus.same_top.point, versus.perplexity_ratio.point), (1.0, 1.0));
}

#[test]
fn chunks_and_threads_do_not_change_a_sum() {
    let texts = texts(8);
    let (base, other) = (mock(model(2)), mock(damaged(2, 0.3)));
    let plan = Plan::new(Convention::LlamaCpp { context: 512 }, &texts, ENCODER, 128).unwrap();
    let with = |chunk, threads| {
        let options = CompareOptions { chunk, threads };
        let others = [("o", Role::Candidate, &other)];
        try_run(&base, &others, (&texts, &plan), &options, &Silent).unwrap()
    };
    let first = with(1, 1);
    for (chunk, threads) in [(3, 1), (64, 2), (1000, 8), (0, 0)] {
        assert_eq!(first, with(chunk, threads));
    }
}

#[test]
fn rows_of_a_wide_vocabulary_are_shared_among_threads_without_a_change() {
    const WIDE: usize = 40_000;
    let texts = texts(1);
    let wide = |seed| {
        let distribution = model(seed);
        Mock::new(Options { vocab: WIDE, distribution, ..Options::default() }).unwrap()
    };
    let (base, other) = (wide(1), wide(2));
    let plan = documents_plan(&texts);
    let with = |threads| {
        let options = CompareOptions { chunk: 64, threads };
        let others = [("o", Role::Candidate, &other)];
        try_run(&base, &others, (&texts, &plan), &options, &Silent).unwrap()
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn candidates_measured_one_by_one_merge_to_the_same_pass() {
    let texts = texts(8);
    let (base, a, b) = (mock(model(2)), mock(damaged(2, 0.3)), mock(damaged(2, 0.1)));
    let plan = documents_plan(&texts);
    let (a, b) = (("a", Role::Candidate, &a), ("b", Role::Candidate, &b));
    let together = run(&base, &[a, b], &texts, &plan);
    let mut merged = run(&base, &[a], &texts, &plan);
    merged.merge(run(&base, &[b], &texts, &plan)).unwrap();
    assert_eq!(merged, together);
    assert!(matches!(merged.merge(run(&base, &[b], &texts, &plan)), Err(Error::Mismatch { .. })));
    let other_base = mock(model(3));
    let refused = merged.merge(run(&other_base, &[("c", b.1, b.2)], &texts, &plan));
    assert!(refused.unwrap_err().to_string().contains("base models"));
}

#[test]
fn figures_survive_json_and_are_the_same_again() {
    let texts = texts(10);
    let (base, other) = (mock(model(5)), mock(damaged(5, 0.5)));
    let plan = documents_plan(&texts);
    let pass = run(&base, &[("o", Role::Candidate, &other)], &texts, &plan);
    let back: Pass = serde_json::from_str(&serde_json::to_string(&pass).unwrap()).unwrap();
    assert_eq!(back, pass);
    assert_eq!(figures(&back), figures(&pass));
}

#[test]
fn figures_of_a_damaged_record_are_refused() {
    let texts = texts(10);
    let base = mock(model(5));
    let mut pass = run(&base, &[], &texts, &documents_plan(&texts));
    pass.models[0].nll.pop();
    let refused = PassFigures::new(&pass, &Bootstrap::default());
    assert!(matches!(refused, Err(Error::Mismatch { .. })));
    pass.models.clear();
    assert!(PassFigures::new(&pass, &Bootstrap::default()).is_err());
}

#[test]
fn intervals_are_over_documents_and_over_segments_when_these_are_few() {
    let (base, other) = (mock(model(6)), mock(damaged(6, 0.5)));
    let many = texts(20);
    let others = [("o", Role::Candidate, &other)];
    let f = figures(&run(&base, &others, &many, &documents_plan(&many)));
    let kl = f.models[1].versus.as_ref().unwrap().kl.interval.unwrap();
    assert_eq!((f.units, kl.n), (Units::Documents, 20));
    assert!(kl.low > 0.0 && kl.low < kl.point && kl.point < kl.high);
    let few = texts(3);
    let plan = Plan::new(Convention::Windows { context: 16 }, &few, ENCODER, 128).unwrap();
    let f = figures(&run(&base, &[], &few, &plan));
    let n = f.models[0].perplexity.interval.unwrap().n;
    assert_eq!((f.units, n), (Units::Segments, plan.segments.len()));
    let one = texts(1);
    let f = figures(&run(&base, &[], &one, &documents_plan(&one)));
    assert_eq!(f.models[0].perplexity.interval, None);
}

#[test]
fn the_noise_floor_stands_beside_the_candidates() {
    let texts = texts(12);
    let (base, floor, other) = (mock(model(7)), mock(damaged(7, 0.01)), mock(damaged(7, 0.4)));
    let others = [("rounded", Role::Floor, &floor), ("small", Role::Candidate, &other)];
    let f = figures(&run(&base, &others, &texts, &documents_plan(&texts)));
    let noise = f.floor.as_ref().unwrap();
    let small = f.model("small").unwrap().versus.as_ref().unwrap();
    assert!(noise.kl.point < 1e-3 && noise.kl.point < small.kl.point / 100.0);
    let above = small.kl_above_floor.unwrap();
    near(above.point, small.kl.point - noise.kl.point);
    assert!(above.interval.unwrap().low > 0.0);
    assert_eq!(f.model("rounded").unwrap().versus.as_ref().unwrap().kl_above_floor, None);
    assert!(noise.label().starts_with("noise floor (rounded): KL "));
}

#[test]
fn bits_per_byte_are_those_of_the_whole_text() {
    let (texts, uniform) = (texts(10), mock(Distribution::Uniform));
    let plan = documents_plan(&texts);
    let figures = figures(&run(&uniform, &[], &texts, &plan));
    let bytes: usize = texts.documents.iter().map(|d| d.text.len()).sum();
    let expected = plan.scored() as f64 * (V as f64).log2() / bytes as f64;
    near(figures.models[0].bits_per_byte.unwrap().point, expected);
}

/// Cancels after three reports.
struct Impatient(AtomicU64);

impl Progress for Impatient {
    fn at(&self, _: &str, done: u64, total: u64) {
        assert!(done <= total);
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn note(&self, _: &str) {}
    fn cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= 3
    }
}

#[test]
fn an_interrupt_is_heard_between_chunks() {
    let (texts, base) = (texts(10), mock(model(8)));
    let plan = documents_plan(&texts);
    let impatient = Impatient(AtomicU64::new(0));
    let stopped = try_run(&base, &[], (&texts, &plan), &CompareOptions::default(), &impatient);
    assert!(matches!(stopped, Err(Error::Cancelled(_))));
    assert_eq!(impatient.0.load(Ordering::Relaxed), 3);
}

#[test]
fn broken_models_are_named() {
    let texts = texts(8);
    let base = mock(model(9));
    let plan = documents_plan(&texts);
    let nan = mock(Distribution::function(|history, row| {
        row.fill(if history.len() == 5 { f32::NAN } else { 0.0 })
    }));
    let options = CompareOptions::default();
    let error = |other: &Mock| {
        let others = [("other", Role::Candidate, other)];
        try_run(&base, &others, (&texts, &plan), &options, &Silent).unwrap_err().to_string()
    };
    assert!(error(&nan).contains("other gave logits that are not numbers"), "{}", error(&nan));
    assert!(error(&nan).contains("document 1, token 5"), "{}", error(&nan));
    let wide = Mock::new(Options { vocab: V + 1, ..Options::default() }).unwrap();
    assert!(error(&wide).contains("vocabulary of 62 but base has 61"));
    let short = Mock::new(Options { vocab: V, context: 16, ..Options::default() }).unwrap();
    assert!(error(&short).contains("context holds 16"));
    let narrow = Mock::new(Options { vocab: 30, ..Options::default() }).unwrap();
    let refused = try_run(&narrow, &[], (&texts, &plan), &options, &Silent).unwrap_err();
    assert!(refused.to_string().contains("do not belong together"));
}
