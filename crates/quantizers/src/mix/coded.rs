use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    thread,
};

use lathe_formats::{AnyFormat, Blocks, Rows};
use lathe_models::{Inputs, Role};

use super::model::Subject;
use crate::{Dense, Error, Needs, Quantizer, Rtn, Search, Stats};

/// Inputs within a layer, or the head's.
pub(super) type Of = Option<(usize, Inputs)>;

/// Codes weights and remembers the codes, the latest first.
pub(super) struct Coder<'a> {
    subject: Subject<'a>,
    /// Of the inputs within each layer, and of the head's.
    stats: BTreeMap<Of, Stats>,
    codes: HashMap<(Role, &'static str), Blocks>,
    order: VecDeque<(Role, &'static str)>,
    held: usize,
    /// Of the original's outputs.
    powers: HashMap<Role, f64>,
}

/// Bytes of codes that are remembered.
pub(super) const MOST_CODES: usize = 1 << 30;
/// Rows that stand for a matrix of more than twice as many: they are coded each by itself, and
/// what formats lose is compared on the same.
const SAMPLED_ROWS: usize = 256;

/// What coding did to the outputs of a matrix, in the units of Σ (W·x)².
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Loss {
    pub(super) error: f64,
    pub(super) power: f64,
}

impl<'a> Coder<'a> {
    pub(super) fn new(subject: Subject<'a>) -> Self {
        let (codes, order) = (HashMap::new(), VecDeque::new());
        Self { subject, stats: BTreeMap::new(), codes, order, held: 0, powers: HashMap::new() }
    }

    pub(super) fn set(&mut self, stats: BTreeMap<Of, Stats>) {
        self.stats = stats;
    }

    /// What is known of a weight's inputs. Embeddings have none, but where they are the head.
    fn stats(&self, role: Role) -> Option<&Stats> {
        let spec = self.subject.weights.spec();
        match role {
            Role::Head => self.stats.get(&None),
            Role::Embed if spec.tied_head => self.stats.get(&None),
            Role::Layer(layer, part) => {
                // An expert that no text went through is coded by its weights alone.
                self.stats.get(&Some((layer, part.inputs()))).filter(|stats| stats.count > 0)
            }
            _ => None,
        }
    }

    /// The quantizer that was asked for, or else, for a format whose codes it cannot choose and for
    /// inputs of which it knows too little, the best that does without.
    fn quantizer(
        &self,
        stats: Option<&Stats>,
        format: &'static dyn AnyFormat,
    ) -> &'a dyn Quantizer {
        let known = stats.map_or(Needs::Nothing, Stats::gives);
        let asked = self.subject.quantizer;
        let able = asked.needs() < Needs::Hessian || format.grid().is_some();
        match format.name() {
            "f32" | "f16" | "bf16" => &Rtn,
            _ if asked.needs() > known || !able => &Search,
            _ => asked,
        }
    }

    fn encode(
        &self,
        role: Role,
        weights: &dyn Rows,
        format: &'static dyn AnyFormat,
    ) -> Result<Blocks, Error> {
        let (stats, threads) = (self.stats(role), self.subject.threads);
        let quantizer = self.quantizer(stats, format);
        let coded = quantizer.quantize(weights, stats, format, threads);
        let name = |error| match error {
            Error::Format(source) => Error::Encode { tensor: role.to_string(), source },
            other => other,
        };
        Ok(coded.map_err(name)?.blocks)
    }

    /// The codes of a weight in a format.
    pub(super) fn code(
        &mut self,
        role: Role,
        format: &'static dyn AnyFormat,
    ) -> Result<Blocks, Error> {
        let key = (role, format.name());
        if let Some(blocks) = self.codes.get(&key) {
            return Ok(blocks.clone());
        }
        let blocks = match self.subject.weights.is_stored(role) {
            true => {
                let stored = self.subject.weights.matrix(role)?;
                let blocks = self.encode(role, &stored, format)?;
                // A search goes through the model many times: its file must not stay in memory.
                lathe_files::release(&stored.data);
                blocks
            }
            false => self.encode(role, &*self.subject.weights.rows(role)?, format)?,
        };
        self.held += blocks.bytes();
        self.codes.insert(key, blocks.clone());
        self.order.push_back(key);
        while self.held > MOST_CODES && self.order.len() > 1 {
            let oldest = self.order.pop_front().and_then(|key| self.codes.remove(&key));
            self.held -= oldest.map_or(0, |blocks| blocks.bytes());
        }
        Ok(blocks)
    }

    /// What coding a weight does to its outputs, by some of its rows where there are many.
    pub(super) fn loss(
        &mut self,
        role: Role,
        format: &'static dyn AnyFormat,
    ) -> Result<Loss, Error> {
        let mut change = self.sample(role)?;
        let threads = self.subject.threads;
        let power = match self.powers.get(&role) {
            Some(power) => *power,
            None => {
                let power = energy(&change, self.stats(role), threads);
                self.powers.insert(role, power);
                power
            }
        };
        let (rows, _) = self.subject.weights.rows(role)?.shape();
        let coded = match change.rows == rows {
            true => self.code(role, format)?,
            false => self.encode(role, &change, format)?,
        };
        change.data.iter_mut().zip(coded.decode()).for_each(|(before, after)| *before -= after);
        Ok(Loss { error: energy(&change, self.stats(role), threads), power })
    }

    /// A weight's rows, evenly spread ones if there are many.
    fn sample(&self, role: Role) -> Result<Dense, Error> {
        let weights = self.subject.weights.rows(role)?;
        let (rows, cols) = weights.shape();
        let taken = if rows > 2 * SAMPLED_ROWS { SAMPLED_ROWS } else { rows };
        let mut data = vec![0.0; taken * cols];
        for (i, row) in data.chunks_exact_mut(cols.max(1)).enumerate() {
            weights.read(i * rows / taken, row);
        }
        Ok(Dense { rows: taken, cols, data })
    }
}

/// Σ over rows of W·H·Wᵀ for the mean H of x·xᵀ, or its diagonal where only that is known, or 1.
///
/// Each row is summed by itself and the rows in order, so that `threads` changes nothing.
fn energy(matrix: &Dense, stats: Option<&Stats>, threads: usize) -> f64 {
    let cols = matrix.cols.max(1);
    let diagonal = stats.map(|stats| stats.importance.as_slice());
    let diagonal = diagonal.filter(|diagonal| diagonal.len() == cols);
    let hessian = stats.and_then(|stats| stats.hessian.as_deref());
    let hessian = hessian.filter(|hessian| hessian.len() == cols * cols);
    let row = |row: &[f32]| match (hessian, diagonal) {
        (Some(hessian), _) => {
            let rows = row.iter().zip(hessian.chunks_exact(cols));
            rows.map(|(w, h)| f64::from(*w) * f64::from(dot(h, row))).sum::<f64>().max(0.0)
        }
        (None, Some(diagonal)) => {
            let terms = row.iter().zip(diagonal);
            terms.map(|(w, h)| f64::from(*w) * f64::from(*w) * f64::from(*h)).sum()
        }
        (None, None) => row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum(),
    };
    let mut sums = vec![0.0; matrix.rows];
    let share = matrix.rows.div_ceil(threads.max(1)).max(1);
    thread::scope(|scope| {
        let row = &row;
        for (sums, rows) in sums.chunks_mut(share).zip(matrix.data.chunks(share * cols)) {
            scope.spawn(move || {
                for (sum, weights) in sums.iter_mut().zip(rows.chunks_exact(cols)) {
                    *sum = row(weights);
                }
            });
        }
    });
    sums.iter().sum()
}

/// Over interleaved lanes, which compilers turn into vector code.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [0.0f32; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energies_are_quadratic_forms_of_what_is_known_at_any_thread_count() {
        let matrix = Dense { rows: 2, cols: 2, data: vec![1.0, 2.0, 3.0, -1.0] };
        assert_eq!(energy(&matrix, None, 1), 15.0);
        let diagonal = Stats { importance: vec![2.0, 3.0], ..Stats::default() };
        assert_eq!(energy(&matrix, Some(&diagonal), 2), 2.0 + 12.0 + 18.0 + 3.0);
        let hessian = Some(vec![2.0, 1.0, 1.0, 3.0]);
        let full = Stats { hessian, ..diagonal };
        assert_eq!(energy(&matrix, Some(&full), 7), 35.0 + 4.0 - 6.0);
    }
}
