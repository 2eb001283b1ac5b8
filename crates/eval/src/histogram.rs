use serde::{Deserialize, Serialize};

/// Counts of positive values in bins of equal ratio: eight to each doubling, so a quantile read
/// from it is within 4.4 % of the exact one. Histograms add up exactly, in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Histogram {
    /// (bin, count), bins rising, no count 0. Bin 0 holds everything below the smallest value.
    bins: Vec<(u16, u64)>,
}

const BINS_PER_DOUBLING: f64 = 8.0;
/// Values below it count as zero: a KL divergence of 1e-12 nats is rounding noise even in double
/// precision.
const SMALLEST: f64 = 1e-12;
/// Up to 2^50 · 1e-12 ≈ 1000 nats, past which double-precision probabilities end.
const LAST_BIN: u16 = 400;

impl Histogram {
    pub fn add(&mut self, value: f64) {
        self.add_count(bin(value), 1);
    }

    pub fn merge(&mut self, other: &Histogram) {
        for &(bin, count) in &other.bins {
            self.add_count(bin, count);
        }
    }

    pub fn count(&self) -> u64 {
        self.bins.iter().map(|&(_, count)| count).sum()
    }

    /// The `p` quantile, as the geometric middle of its bin; `None` if empty.
    pub fn quantile(&self, p: f64) -> Option<f64> {
        let rank = (p.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        self.bins.iter().find_map(|&(bin, count)| {
            seen += count;
            (seen >= rank).then(|| middle(bin))
        })
    }

    fn add_count(&mut self, bin: u16, count: u64) {
        match self.bins.binary_search_by_key(&bin, |&(b, _)| b) {
            Ok(place) => self.bins[place].1 += count,
            Err(place) => self.bins.insert(place, (bin, count)),
        }
    }
}

fn bin(value: f64) -> u16 {
    if value < SMALLEST {
        return 0;
    }
    // A cast saturates, so that infinity lands in the last bin.
    (((value / SMALLEST).log2() * BINS_PER_DOUBLING) as u16).min(LAST_BIN - 1) + 1
}

fn middle(bin: u16) -> f64 {
    match bin {
        0 => 0.0,
        bin => SMALLEST * ((f64::from(bin) - 0.5) / BINS_PER_DOUBLING).exp2(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_the_width_of_a_bin() {
        let mut h = Histogram::default();
        let values: Vec<f64> = (1..=1000).map(|i| 1e-4 * f64::from(i)).collect();
        values.iter().for_each(|&v| h.add(v));
        for p in [0.01, 0.5, 0.99, 1.0] {
            let exact = values[(p * 1000.0) as usize - 1];
            let read = h.quantile(p).unwrap();
            assert!((read / exact - 1.0).abs() < 0.045, "{p}: {read} for {exact}");
        }
    }

    #[test]
    fn merging_is_adding() {
        let (mut a, mut b, mut all) =
            (Histogram::default(), Histogram::default(), Histogram::default());
        for i in 0..100 {
            let value = f64::from(i * i) * 1e-5;
            if i % 3 == 0 {
                a.add(value)
            } else {
                b.add(value)
            }
            all.add(value);
        }
        a.merge(&b);
        assert_eq!(a, all);
        assert_eq!(a.count(), 100);
    }

    #[test]
    fn zero_and_huge_values_have_their_bins() {
        let mut h = Histogram::default();
        assert_eq!(h.quantile(0.5), None);
        h.add(0.0);
        assert_eq!(h.quantile(0.5), Some(0.0));
        h.add(f64::INFINITY);
        assert!(h.quantile(1.0).unwrap() > 1e2);
    }
}
