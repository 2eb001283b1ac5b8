use lathe_api::{Engine, Logits, Scorer};
use lathe_base::Progress;

use crate::scoring::{Reference, Rows, Token};
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
    /// Tokens fed at a time, which bounds what is held to a few times `chunk` × V logits. Very large
    /// vocabularies make it smaller.
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

/// The most logits of one model in a chunk: with the base's weights in double precision, 16 bytes of
/// each, a comparison holds 128 MiB.
const LARGEST_CHUNK: usize = 8 << 20;

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
    if texts.documents.len() != plan.document_tokens.len() {
        return Err(Error::Mismatch { why: "the plan was made for another text".into() });
    }
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
    let size = options.chunk.min(LARGEST_CHUNK / base.engine.info().vocab).max(1);
    let mut done = 0;
    let mut all = Streams { streams, weights: Vec::new(), threads: options.threads };
    for segment in &plan.segments {
        all.streams.iter_mut().for_each(Stream::begin);
        for (i, chunk) in segment.fed().chunks(size).enumerate() {
            progress.check()?;
            let start = i * size;
            all.chunk(segment, start, chunk)?;
            done += chunk.len() as u64;
            progress.at("tokens scored", done, total);
        }
    }
    Ok(pass(base, texts, plan, all.streams))
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
            if let Some(histogram) = self.sums.kl_histograms.get_mut(document) {
                histogram.add(seen.kl);
            }
        }
    }
}

/// All models of a comparison.
struct Streams<'a> {
    streams: Vec<Stream<'a>>,
    /// Room for the base's weights, kept from chunk to chunk.
    weights: Vec<f64>,
    threads: usize,
}

impl Streams<'_> {
    /// Feeds `chunk`, which begins at `start` of the segment, to every model and adds up.
    fn chunk(&mut self, segment: &Segment, start: usize, chunk: &[u32]) -> Result<(), Error> {
        // Row i of the chunk predicts token start + i + 1.
        let skip = segment.first_scored.saturating_sub(start + 1).min(chunk.len());
        let targets = &segment.tokens[start + skip + 1..start + chunk.len() + 1];
        let broken = |stream: &Stream<'_>, row| stream.not_finite(segment, start + skip + row + 1);
        let Some((base, others)) = self.streams.split_first_mut() else { return Ok(()) };
        let logits = base.feed(chunk)?;
        let room = if others.is_empty() { 0 } else { targets.len() * logits.vocab };
        self.weights.resize(room, 0.0);
        let tokens = Rows { logits: &logits, skip, targets }
            .weigh(&mut self.weights, self.threads)
            .map_err(|row| broken(base, row))?;
        tokens.iter().for_each(|token| base.add(segment.document, token));
        let reference = Reference { logits: &logits, tokens: &tokens, weights: &self.weights };
        for other in others {
            let logits = other.feed(chunk)?;
            let tokens = Rows { logits: &logits, skip, targets }
                .against(&reference, self.threads)
                .map_err(|row| broken(other, row))?;
            tokens.iter().for_each(|token| other.add(segment.document, token));
        }
        Ok(())
    }
}
