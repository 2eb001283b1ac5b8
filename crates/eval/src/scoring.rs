//! What a chunk's rows of logits say about one model, alone and against the base.

use lathe_api::Logits;

use crate::rows::{Row, Weighed, divergence};

/// What one position says about one model.
#[derive(Clone, Copy)]
pub(crate) struct Token {
    pub(crate) row: Row,
    pub(crate) log_p: f64,
    pub(crate) against: Option<Difference>,
}

#[derive(Clone, Copy)]
pub(crate) struct Difference {
    pub(crate) kl: f64,
    pub(crate) same_top: bool,
    pub(crate) delta_p: f64,
    pub(crate) delta_top: f64,
}

/// The base's logits of a chunk with what is known of them, to measure another model against.
#[derive(Clone, Copy)]
pub(crate) struct Reference<'a> {
    pub(crate) logits: &'a Logits,
    pub(crate) tokens: &'a [Token],
    /// exp(logit − max) of each scored row, \[rows, V\].
    pub(crate) weights: &'a [f64],
}

/// The rows of a chunk from `skip` on and the tokens that came after them.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) logits: &'a Logits,
    pub(crate) skip: usize,
    pub(crate) targets: &'a [u32],
}

impl Rows<'_> {
    /// Scores the base's rows and keeps their weights, unless there is no room for them; `Err` has
    /// the first row that is not finite.
    pub(crate) fn weigh(&self, weights: &mut [f64], threads: usize) -> Result<Vec<Token>, usize> {
        let (n, vocab) = (self.targets.len(), self.logits.vocab);
        let share = self.share(threads);
        let run = |from: usize, weights: &mut [f64]| {
            let mut kept = weights.chunks_exact_mut(vocab);
            (from..(from + share).min(n))
                .map(|i| {
                    let values = self.row(i);
                    let row = match kept.next() {
                        Some(weights) => Row::weigh(values, weights),
                        None => Row::new(values),
                    };
                    let row = row.ok_or(i)?;
                    Ok(Token { row, log_p: self.log_p(&row, i), against: None })
                })
                .collect::<Result<Vec<_>, usize>>()
        };
        if share >= n {
            return run(0, weights);
        }
        let mut rest = weights;
        std::thread::scope(|scope| {
            let mut parts = Vec::new();
            for from in (0..n).step_by(share) {
                let (mine, others) = rest.split_at_mut((share * vocab).min(rest.len()));
                rest = others;
                let run = &run;
                parts.push(scope.spawn(move || run(from, mine)));
            }
            join(parts)
        })
    }

    /// Scores another model's rows against the base's.
    pub(crate) fn against(
        &self,
        base: &Reference<'_>,
        threads: usize,
    ) -> Result<Vec<Token>, usize> {
        let n = self.targets.len();
        let share = self.share(threads);
        let run = |from: usize| {
            let mut weights = vec![0.0; self.logits.vocab];
            (from..(from + share).min(n))
                .map(|i| self.difference(base, i, &mut weights).ok_or(i))
                .collect::<Result<Vec<_>, usize>>()
        };
        if share >= n {
            return run(0);
        }
        std::thread::scope(|scope| {
            let run = &run;
            join((0..n).step_by(share).map(|from| scope.spawn(move || run(from))).collect())
        })
    }

    fn difference(&self, base: &Reference<'_>, i: usize, weights: &mut [f64]) -> Option<Token> {
        let (values, vocab) = (self.row(i), self.logits.vocab);
        let row = Row::weigh(values, weights)?;
        let log_p = self.log_p(&row, i);
        let known = &base.tokens[i];
        let base_values = row_of(base.logits, self.skip + i);
        let top = known.row.top;
        let kl = divergence(
            Weighed {
                row: &known.row,
                logits: base_values,
                weights: &base.weights[i * vocab..][..vocab],
            },
            Weighed { row: &row, logits: values, weights },
        );
        let against = Difference {
            kl,
            same_top: row.top == top,
            delta_p: log_p.exp() - known.log_p.exp(),
            delta_top: row.log_p(values[top]).exp() - known.row.log_p(base_values[top]).exp(),
        };
        Some(Token { row, log_p, against: Some(against) })
    }

    fn log_p(&self, row: &Row, i: usize) -> f64 {
        row.log_p(self.row(i)[self.targets[i] as usize])
    }

    fn row(&self, i: usize) -> &[f32] {
        row_of(self.logits, self.skip + i)
    }

    /// Rows per thread. Threads cost some 50 µs to start: below half a million logits each they do
    /// not pay.
    fn share(&self, threads: usize) -> usize {
        let n = self.targets.len();
        let worth = (n * self.logits.vocab) >> 19;
        n.div_ceil(threads.min(worth).max(1)).max(1)
    }
}

fn row_of(logits: &Logits, index: usize) -> &[f32] {
    &logits.values[index * logits.vocab..][..logits.vocab]
}

fn join(
    parts: Vec<std::thread::ScopedJoinHandle<'_, Result<Vec<Token>, usize>>>,
) -> Result<Vec<Token>, usize> {
    let mut tokens = Vec::new();
    for part in parts {
        match part.join() {
            Ok(part) => tokens.extend(part?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    Ok(tokens)
}
