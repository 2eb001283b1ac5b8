use lathe_stats::{Bound, Verdict};
use serde::{Deserialize, Serialize};

use super::{LoadFigures, Pattern};

/// One load of a sweep, and what it came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    pub pattern: Pattern,
    pub figures: LoadFigures,
}

/// What several levels say together; levels by their index.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Where throughput over mean latency is greatest: beyond it, more load buys more waiting than
    /// throughput (Kleinrock's *power*, 1979). Not known where it is the greatest load of all.
    pub knee: Option<usize>,
    /// The most output tokens a second.
    pub peak: Option<usize>,
    /// The greatest load that was shown to keep the objective, and the lowest that was shown not to.
    pub meets: Option<usize>,
    pub fails: Option<usize>,
}

impl Level {
    /// Whether requests keep the objective for at least the share `wanted`: judged on the bound of
    /// the interval, and only where the queue did not grow. `None` without an objective.
    pub fn verdict(&self, wanted: f64) -> Option<Verdict> {
        let attainment = self.figures.attainment?;
        if self.figures.growth.is_some_and(|growth| growth.grows) {
            return Some(Verdict::Fails);
        }
        Some(Bound::AtLeast(wanted).judge(&attainment))
    }
}

/// Sums a sweep up, of which at least `wanted` of all requests are to keep the objective.
pub fn summary(levels: &[Level], wanted: f64) -> Summary {
    let rate = |level: &Level| level.figures.output.map(|rate| rate.point);
    let power = |level: &Level| Some(rate(level)? / level.figures.e2e?.mean);
    let best = |of: &dyn Fn(&Level) -> Option<f64>| {
        let known = levels.iter().enumerate().filter_map(|(i, level)| Some((i, of(level)?)));
        known.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(index, _)| index)
    };
    let judged = |verdict: Verdict| move |level: &&Level| level.verdict(wanted) == Some(verdict);
    let by_load = |a: &&Level, b: &&Level| load(&a.pattern).total_cmp(&load(&b.pattern));
    let index = |found: &Level| levels.iter().position(|level| std::ptr::eq(level, found));
    let fails = levels.iter().filter(judged(Verdict::Fails)).min_by(by_load);
    // What is met above a load that fails is luck.
    let below = |level: &&Level| fails.is_none_or(|f| load(&level.pattern) < load(&f.pattern));
    let meets = levels.iter().filter(judged(Verdict::Meets)).filter(below).max_by(by_load);
    let has_more = |knee: &usize| {
        levels.iter().any(|level| load(&level.pattern) > load(&levels[*knee].pattern))
    };
    Summary {
        knee: if levels.len() > 2 { best(&power).filter(has_more) } else { None },
        peak: best(&rate),
        meets: meets.and_then(index),
        fails: fails.and_then(index),
    }
}

/// Orders levels of the same kind.
fn load(pattern: &Pattern) -> f64 {
    match pattern {
        Pattern::Closed { users } => *users as f64,
        Pattern::Offline => f64::INFINITY,
        Pattern::Open { .. } | Pattern::Timed { .. } => pattern.rate().unwrap_or(0.0),
    }
}

#[cfg(test)]
mod tests {
    use lathe_base::Seconds;
    use lathe_stats::wilson;

    use super::*;
    use crate::load::{LoadSample, Objective, Spacing, Window, load_figures};

    /// `rate` requests a second to a server that takes `latency` for each.
    fn level(rate: f64, latency: f64, kept: usize) -> Level {
        let pattern = Pattern::Open { rate, spacing: Spacing::Constant };
        let samples: Vec<LoadSample> = (0..100)
            .map(|number| {
                let due = Seconds(number as f64 / rate);
                let end = Seconds(due.0 + latency);
                let (prompt_tokens, tokens) = (1, vec![end]);
                let (asked, sent, failure) = (1, due, None);
                LoadSample { number, prompt_tokens, asked, due, sent, tokens, end, failure }
            })
            .collect();
        let mut figures =
            load_figures(&samples, &pattern, &Window::default(), &Objective::default(), 0.95);
        figures.attainment = Some(wilson(kept, 100, 0.95).unwrap());
        Level { pattern, figures }
    }

    #[test]
    fn the_knee_is_where_more_load_buys_waiting() {
        let levels = [
            level(1.0, 1.0, 100),
            level(2.0, 1.05, 100),
            level(4.0, 1.3, 100),
            level(8.0, 2.5, 40),
            level(7.0, 2.0, 100),
        ];
        let found = summary(&levels, 0.9);
        assert_eq!((found.knee, found.meets, found.fails), (Some(4), Some(4), Some(3)));
        assert_eq!(found.peak, Some(3));
        assert_eq!(summary(&levels[..1], 0.9).knee, None);
        // Throughput over latency still grows: the knee is not reached.
        assert_eq!(summary(&levels[..3], 0.9).knee, None);
    }

    #[test]
    fn what_the_interval_does_not_decide_is_neither_met_nor_failed() {
        let levels = [level(1.0, 1.0, 91)];
        assert_eq!(levels[0].verdict(0.9), Some(Verdict::Undecided));
        assert_eq!(summary(&levels, 0.9).meets, None);
    }
}
