use crate::{Gram, Needs, Stats};

/// Gathers [`Stats`] of the inputs of one stage.
///
/// Sums are taken in f64, input by input, so that neither the sizes in which inputs come nor the
/// number of threads changes the result.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    count: u64,
    abs: Vec<f64>,
    squares: Vec<f64>,
    absmax: Vec<f32>,
    products: Option<Gram>,
}

impl Tally {
    pub(super) fn new(cols: usize, needs: Needs) -> Self {
        Self {
            count: 0,
            abs: vec![0.0; cols],
            squares: vec![0.0; cols],
            absmax: vec![0.0; cols],
            products: (needs == Needs::Hessian).then(|| Gram::new(cols)),
        }
    }

    /// Takes inputs `[T, cols]` in.
    pub(super) fn add(&mut self, inputs: &[f32], threads: usize) {
        for input in inputs.chunks_exact(self.abs.len().max(1)) {
            self.count += 1;
            let sums = self.abs.iter_mut().zip(&mut self.squares).zip(&mut self.absmax);
            for (x, ((abs, square), max)) in input.iter().zip(sums) {
                let size = x.abs();
                *abs += f64::from(size);
                *square += f64::from(*x) * f64::from(*x);
                *max = max.max(size);
            }
        }
        if let Some(products) = &mut self.products {
            products.add(inputs, threads);
        }
    }

    pub(super) fn stats(self, threads: usize) -> Stats {
        let count = self.count.max(1) as f64;
        let mean = |sums: &[f64]| sums.iter().map(|sum| (sum / count) as f32).collect();
        Stats {
            count: self.count,
            mean_abs: mean(&self.abs),
            importance: mean(&self.squares),
            absmax: self.absmax,
            hessian: self.products.map(|products| products.mean(threads)),
        }
    }
}
