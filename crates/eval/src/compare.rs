use lathe_api::{Engine, Logits, Scorer};
use lathe_base::Progress;

use crate::rows::{Row, divergence};
use crate::{Against, Error, Histogram, ModelPass, Pass, Plan, Role, Segment, SegmentRaw, Texts};

/// A model to measure.
pub struct Subject<'a> {
    pub name: &'a str,
    pub role: Role,
    pub engine: &'a dyn Engine,
}

/// How to run a comparison.
#[derive(Clone, Copy, Debug)]
pub struct CompareOptions {
    /// Tokens fed at a time: what is held of each model is `chunk` × V logits.
    pub chunk: usize,
    /// Threads for the arithmetic on logits (the engines have their own).
    pub threads: usize,
}

impl Default for CompareOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { chunk: 64, threads }
    }
}

/// Scores the plan's segments with the base and all others, side by side, chunk by chunk; at no
/// time are more than two chunks of logits held and none are stored.
///
/// The result has the base first and the others in their order. Without others it is a measurement
/// of perplexity.
///
/// # Errors
/// [`Error::Vocabulary`] where a model's vocabulary is not the base's; [`Error::Tokenizer`] where a
/// token is outside of it; [`Error::NotFinite`] and
/// [`Error::Shape`] for broken logits; [`Error::Engine`]; [`Error::Cancelled`].
pub fn compare(
    base: &Subject<'_>,
    others: &[Subject<'_>],
    texts: &Texts,
    plan: &Plan,
    options: &CompareOptions,
    progress: &dyn Progress,
) -> Result<Pass, Error> {
    plan.check_vocabulary(base.name, base.engine.info().vocab)?;
    let mut streams = vec![Stream::open(base, plan, texts.documents.len())?];
    for other in others {
        let vocab = (base.engine.info().vocab, other.engine.info().vocab);
        if vocab.0 != vocab.1 {
            return Err(Error::Vocabulary {
                base: base.name.into(),
                model: other.name.into(),
                expected: vocab.0,
                found: vocab.1,
            });
        }
        streams.push(Stream::open(other, plan, texts.documents.len())?);
    }
    let total = plan.fed() as u64;
    let mut done = 0;
    for segment in &plan.segments {
        streams.iter_mut().for_each(Stream::begin);
        for (i, chunk) in segment.fed().chunks(options.chunk.max(1)).enumerate() {
            progress.check()?;
            let start = i * options.chunk.max(1);
            one_chunk(&mut streams, segment, start, chunk, options.threads)?;
            done += chunk.len() as u64;
            progress.at("tokens scored", done, total);
        }
    }
    Ok(pass(base, texts, plan, streams))
}

fn pass(base: &Subject<'_>, texts: &Texts, plan: &Plan, streams: Vec<Stream<'_>>) -> Pass {
    let segments = plan.segments.iter();
    let segments: Vec<SegmentRaw> = segments
        .map(|s| SegmentRaw { document: s.document as u32, tokens: s.scored() as u32 })
        .collect();
    let counted: usize = segments.iter().map(|s| s.tokens as usize).sum();
    let all_count = counted == plan.document_tokens.iter().sum::<usize>();
    Pass {
        convention: plan.convention,
        label: plan.label.clone(),
        token_hash: plan.token_hash(),
        vocab: base.engine.info().vocab,
        segments,
        document_bytes: match all_count && plan.convention == crate::Convention::Documents {
            true => texts.documents.iter().map(|d| d.text.len() as u64).collect(),
            false => Vec::new(),
        },
        models: streams.into_iter().map(|s| s.sums).collect(),
    }
}

/// One model on its way through the text.
struct Stream<'a> {
    scorer: Box<dyn Scorer + 'a>,
    sums: ModelPass,
}

impl<'a> Stream<'a> {
    fn open(subject: &Subject<'a>, plan: &Plan, documents: usize) -> Result<Self, Error> {
        let engine = |source| Error::Engine { model: subject.name.into(), source };
        let info = subject.engine.info().clone();
        let longest = plan.segments.iter().map(|s| s.fed().len()).max().unwrap_or(0);
        if longest > info.context {
            return Err(engine(lathe_api::Error::ContextExceeded {
                needed: longest,
                context: info.context,
            }));
        }
        let against = subject.role != Role::Base;
        let sums = ModelPass {
            name: subject.name.into(),
            role: subject.role,
            engine: info,
            nll: Vec::with_capacity(plan.segments.len()),
            against: Vec::new(),
            kl_histograms: vec![Histogram::default(); if against { documents } else { 0 }],
        };
        Ok(Self { scorer: subject.engine.scorer().map_err(engine)?, sums })
    }

    fn begin(&mut self) {
        self.scorer.reset();
        self.sums.nll.push(0.0);
        if self.sums.role != Role::Base {
            self.sums.against.push(Against::default());
        }
    }

    fn feed(&mut self, chunk: &[u32]) -> Result<Logits, Error> {
        let model = || self.sums.name.clone();
        let logits =
            self.scorer.feed(chunk).map_err(|source| Error::Engine { model: model(), source })?;
        let expected = chunk.len() * self.sums.engine.vocab;
        if logits.values.len() != expected || logits.vocab != self.sums.engine.vocab {
            return Err(Error::Shape { model: model(), expected, found: logits.values.len() });
        }
        Ok(logits)
    }

    fn not_finite(&self, segment: &Segment, position: usize) -> Error {
        let place = format!("document {}", segment.document + 1);
        Error::NotFinite { model: self.sums.name.clone(), place, position }
    }

    fn add(&mut self, document: usize, token: &Token) {
        if let Some(nll) = self.sums.nll.last_mut() {
            *nll -= token.log_p;
        }
        if let (Some(sum), Some(seen)) = (self.sums.against.last_mut(), token.against) {
            sum.kl += seen.kl;
            sum.kl_squares += seen.kl * seen.kl;
            sum.kl_max = sum.kl_max.max(seen.kl);
            sum.same_top += u32::from(seen.same_top);
            sum.delta_p += seen.delta_p;
            sum.delta_p_squares += seen.delta_p * seen.delta_p;
            sum.delta_top += seen.delta_top;
            self.sums.kl_histograms[document].add(seen.kl);
        }
    }
}

/// What one position says about one model.
#[derive(Clone, Copy)]
struct Token {
    row: Row,
    log_p: f64,
    against: Option<Difference>,
}

#[derive(Clone, Copy)]
struct Difference {
    kl: f64,
    same_top: bool,
    delta_p: f64,
    delta_top: f64,
}

/// The base's logits of a chunk with what is known of them, to measure another model against.
struct Reference<'a> {
    logits: &'a Logits,
    tokens: &'a [Token],
}

/// Feeds `chunk`, which begins at `start` of the segment, to every model and adds up.
fn one_chunk(
    streams: &mut [Stream<'_>],
    segment: &Segment,
    start: usize,
    chunk: &[u32],
    threads: usize,
) -> Result<(), Error> {
    // Row i of the chunk predicts token start + i + 1.
    let skip = segment.first_scored.saturating_sub(start + 1).min(chunk.len());
    let targets = &segment.tokens[start + skip + 1..start + chunk.len() + 1];
    let mut base: Option<(Logits, Vec<Token>)> = None;
    for stream in streams {
        let logits = stream.feed(chunk)?;
        let reference = base.as_ref().map(|(logits, tokens)| Reference { logits, tokens });
        let tokens = Rows { logits: &logits, skip, targets, base: reference }
            .score(threads)
            .map_err(|row| stream.not_finite(segment, start + skip + row + 1))?;
        for token in &tokens {
            stream.add(segment.document, token);
        }
        if base.is_none() {
            base = Some((logits, tokens));
        }
    }
    Ok(())
}

/// The rows of a chunk from `skip` on and the tokens that came after them.
struct Rows<'a> {
    logits: &'a Logits,
    skip: usize,
    targets: &'a [u32],
    base: Option<Reference<'a>>,
}

impl Rows<'_> {
    /// Scores all rows, in parallel; `Err` has the first that is not finite.
    fn score(&self, threads: usize) -> Result<Vec<Token>, usize> {
        let n = self.targets.len();
        // Threads cost some 50 µs to start: below half a million logits each they do not pay.
        let worth = (n * self.logits.vocab) >> 19;
        let share = n.div_ceil(threads.min(worth).max(1)).max(1);
        let run = |from: usize| (from..(from + share).min(n)).map(|i| self.token(i).ok_or(i));
        if share >= n {
            return run(0).collect();
        }
        std::thread::scope(|scope| {
            let parts: Vec<_> = (0..n)
                .step_by(share)
                .map(|from| scope.spawn(move || run(from).collect::<Result<Vec<_>, usize>>()))
                .collect();
            let mut tokens = Vec::with_capacity(n);
            for part in parts {
                match part.join() {
                    Ok(part) => tokens.extend(part?),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(tokens)
        })
    }

    fn token(&self, i: usize) -> Option<Token> {
        let values = self.row(self.logits, i);
        let row = Row::new(values)?;
        let log_p = row.log_p(values[self.targets[i] as usize]);
        let against = self.base.as_ref().map(|base| {
            let (known, base) = (&base.tokens[i], self.row(base.logits, i));
            let top = known.row.top;
            Difference {
                kl: divergence(base, &known.row, values, &row),
                same_top: row.top == top,
                delta_p: log_p.exp() - known.log_p.exp(),
                delta_top: row.log_p(values[top]).exp() - known.row.log_p(base[top]).exp(),
            }
        });
        Some(Token { row, log_p, against })
    }

    fn row<'l>(&self, logits: &'l Logits, i: usize) -> &'l [f32] {
        &logits.values[(self.skip + i) * logits.vocab..][..logits.vocab]
    }
}
