use std::sync::{Mutex, PoisonError};

use lathe_base::Bytes;
use lathe_kernels::{Gram, Pool};

use crate::{Error, Needs, Stats};

/// Gathers what is known of the inputs of one stage.
///
/// Sums run over the tokens in their order, so that neither how these are cut into calls nor the
/// number of threads changes a bit.
pub(crate) struct Collector {
    cols: usize,
    count: u64,
    strips: Vec<Mutex<Strip>>,
    gram: Option<Gram>,
    sample: Sample,
}

/// The inputs of some tokens: every `stride`-th one.
struct Sample {
    stride: u64,
    inputs: Vec<f32>,
}

/// A sample has at least so many tokens, where there are so many, and never twice as many.
const SAMPLE: usize = 64;

/// Columns that one task is about.
const STRIP: usize = 64;

#[derive(Clone)]
struct Strip {
    abs: [f64; STRIP],
    squares: [f64; STRIP],
    most: [f32; STRIP],
}

/// An input that no statistics can be made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bad {
    /// Which of the call's tokens.
    pub(crate) token: usize,
    pub(crate) value: f32,
}

impl Bad {
    /// Says which sample it was, of neighbouring ones from `first` on with these lengths.
    pub(crate) fn of(
        self,
        layer: usize,
        inputs: impl std::fmt::Display,
        (first, lengths): (usize, &[usize]),
    ) -> Error {
        let (mut sample, mut token) = (first, self.token);
        for length in lengths {
            if token < *length {
                break;
            }
            token -= length;
            sample += 1;
        }
        let stage = inputs.to_string();
        Error::Input { layer, stage, sample, token, value: self.value }
    }
}

impl Collector {
    /// For inputs of `cols` numbers.
    ///
    /// **Errors**: not enough memory.
    pub(crate) fn new(cols: usize, needs: Needs) -> Result<Self, Error> {
        let strip =
            || Mutex::new(Strip { abs: [0.0; STRIP], squares: [0.0; STRIP], most: [0.0; STRIP] });
        let gram = (needs == Needs::Hessian).then(|| Gram::new(cols)).transpose()?;
        let strips = (0..cols.div_ceil(STRIP)).map(|_| strip()).collect();
        let sample = Sample { stride: 1, inputs: Vec::new() };
        Ok(Self { cols, count: 0, strips, gram, sample })
    }

    /// What it holds while it gathers.
    pub(crate) fn bytes(cols: usize, needs: Needs) -> Bytes {
        let gram = if needs == Needs::Hessian { Gram::bytes(cols) } else { 0 };
        let sample = 2 * SAMPLE * cols * size_of::<f32>();
        Bytes((gram + cols.div_ceil(STRIP) * size_of::<Strip>() + sample) as u64)
    }

    /// Adds inputs `[T, cols]`.
    ///
    /// **Errors**: the first number that is NaN or infinite.
    pub(crate) fn add(&mut self, pool: &Pool, x: &[f32]) -> Result<(), Bad> {
        let cols = self.cols;
        pool.run(self.strips.len(), &|task| {
            let mut strip = self.strips[task].lock().unwrap_or_else(PoisonError::into_inner);
            let columns = task * STRIP..cols.min((task + 1) * STRIP);
            x.chunks_exact(cols).for_each(|x| strip.add(&x[columns.clone()]));
        });
        let finite = |strip: &mut Mutex<Strip>| {
            let strip = strip.get_mut().unwrap_or_else(PoisonError::into_inner);
            strip.squares.iter().all(|sum| sum.is_finite())
        };
        if !self.strips.iter_mut().all(finite) {
            let at = x.iter().position(|x| !x.is_finite()).unwrap_or(0);
            return Err(Bad { token: at / cols, value: x[at] });
        }
        if let Some(gram) = &mut self.gram {
            gram.add(pool, x);
        }
        self.sample.add(self.count, cols, x);
        self.count += (x.len() / cols) as u64;
        Ok(())
    }

    /// Σ x² of each column.
    pub(crate) fn squares(&self) -> Vec<f32> {
        self.columns(|strip| strip.squares.map(|sum| sum as f32))
    }

    /// Tokens seen.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Means of what was gathered.
    ///
    /// **Errors**: not enough memory for the Hessian.
    pub(crate) fn finish(self, pool: &Pool) -> Result<Stats, Error> {
        let scale = 1.0 / self.count.max(1) as f64;
        let mean_abs = self.columns(|strip| strip.abs.map(|sum| (sum * scale) as f32));
        let importance = self.columns(|strip| strip.squares.map(|sum| (sum * scale) as f32));
        let absmax = self.columns(|strip| strip.most);
        let hessian = self.gram.map(|gram| gram.finish(pool, scale)).transpose()?;
        let sample = self.sample.inputs;
        Ok(Stats { count: self.count, mean_abs, importance, absmax, sample, hessian })
    }

    fn columns(&self, of: impl Fn(&Strip) -> [f32; STRIP]) -> Vec<f32> {
        let strips = self.strips.iter();
        let all = strips.flat_map(|s| of(&s.lock().unwrap_or_else(PoisonError::into_inner)));
        all.take(self.cols).collect()
    }
}

impl Sample {
    /// Looks at inputs `[T, cols]`, the first of which is that of token `first`.
    fn add(&mut self, first: u64, cols: usize, x: &[f32]) {
        for (token, x) in (first..).zip(x.chunks_exact(cols)) {
            if token.is_multiple_of(self.stride) {
                self.inputs.extend(x);
            }
            if self.inputs.len() == 2 * SAMPLE * cols {
                let every_other = self.inputs.chunks_exact(cols).step_by(2);
                self.inputs = every_other.flatten().copied().collect();
                self.stride *= 2;
            }
        }
    }
}

impl Strip {
    fn add(&mut self, x: &[f32]) {
        let sums = self.abs.iter_mut().zip(&mut self.squares).zip(&mut self.most);
        for (((abs, square), most), x) in sums.zip(x) {
            *abs += f64::from(x.abs());
            *square += f64::from(*x) * f64::from(*x);
            *most = most.max(x.abs());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_a_plain_loop_however_calls_are_cut() {
        let (tokens, cols) = (23, 70);
        let x: Vec<f32> =
            (0..tokens * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        let stats = |threads, cut: usize| {
            let pool = Pool::new(threads);
            let mut collector = Collector::new(cols, Needs::Hessian).unwrap();
            x.chunks(cut * cols).for_each(|x| collector.add(&pool, x).unwrap());
            collector.finish(&pool).unwrap()
        };
        let one = stats(1, tokens);
        assert_eq!(stats(3, 4), one);
        let column = |c: usize| x.iter().skip(c).step_by(cols);
        for c in [0, 63, 64, 69] {
            let mean = |f: fn(f32) -> f32| column(c).map(|x| f(*x)).sum::<f32>() / tokens as f32;
            assert!((one.mean_abs[c] - mean(f32::abs)).abs() < 1e-5);
            assert!((one.importance[c] - mean(|x| x * x)).abs() < 1e-4);
            assert_eq!(one.absmax[c], column(c).fold(0.0, |most, x| x.abs().max(most)));
            let hessian = one.hessian.as_ref().unwrap()[c * cols + c];
            assert!((hessian / one.importance[c] - 1.0).abs() < 1e-6);
        }
        assert_eq!(one.count, 23);
    }

    #[test]
    fn a_sample_has_tokens_of_the_whole_text_however_calls_are_cut() {
        let (tokens, cols) = (1000, 3);
        let x: Vec<f32> = (0..tokens * cols).map(|i| i as f32).collect();
        let sample = |cut: usize| {
            let pool = Pool::new(1);
            let mut collector = Collector::new(cols, Needs::Importance).unwrap();
            x.chunks(cut * cols).for_each(|x| collector.add(&pool, x).unwrap());
            collector.finish(&pool).unwrap().sample
        };
        let one = sample(tokens);
        assert_eq!(sample(7), one);
        let count = one.len() / cols;
        assert!((SAMPLE..2 * SAMPLE).contains(&count), "{count}");
        for (nth, x) in one.chunks_exact(cols).enumerate() {
            assert_eq!(x, &x_of(nth * tokens.div_ceil(count).next_power_of_two(), cols));
        }
        assert!(one[one.len() - cols] as usize / cols >= tokens * 9 / 10);
    }

    fn x_of(token: usize, cols: usize) -> Vec<f32> {
        (0..cols).map(|i| (token * cols + i) as f32).collect()
    }

    #[test]
    fn the_first_number_that_is_not_finite_is_named() {
        let pool = Pool::new(2);
        let mut collector = Collector::new(4, Needs::Importance).unwrap();
        let mut x = vec![1.0; 12];
        collector.add(&pool, &x).unwrap();
        (x[6], x[9]) = (f32::INFINITY, f32::NAN);
        let bad = collector.add(&pool, &x).unwrap_err();
        assert_eq!((bad.token, bad.value), (1, f32::INFINITY));
    }
}
