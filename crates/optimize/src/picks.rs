use lathe_report::{Outcome, Pick, Row, Weights};
use lathe_stats::{Interval, Verdict};

use crate::requirements::{Unit, three_digits};

/// Marks the rows that no other row beats in both dimensions.
pub(crate) fn mark_frontiers(rows: &mut [Row]) {
    let quality: Vec<Option<(f64, f64)>> =
        rows.iter().map(|r| Some((r.size.0 as f64, r.kl?.point))).collect();
    let speed: Vec<Option<(f64, f64)>> = rows.iter().map(speed_and_memory).collect();
    for (index, row) in rows.iter_mut().enumerate() {
        row.pareto_quality_size = on_frontier(&quality, index);
        row.pareto_speed_memory = on_frontier(&speed, index);
    }
}

/// Of an engine that computes something else, neither says anything.
fn speed_and_memory(row: &Row) -> Option<(f64, f64)> {
    let known = (row.needed_memory?.0 as f64, -row.decode?.point);
    (!row.deviates()).then_some(known)
}

/// Whether no other point is as good in both coordinates and better in one; smaller is better.
fn on_frontier(points: &[Option<(f64, f64)>], index: usize) -> bool {
    let Some(own) = points[index] else { return false };
    !points.iter().flatten().any(|&(x, y)| x <= own.0 && y <= own.1 && (x < own.0 || y < own.1))
}

/// The speed of one row over another's, paired by round.
pub(crate) type Ratio<'a> = &'a dyn Fn(&str, &str) -> Option<Interval>;

/// Scores each row by throughput over the fastest's, the smallest memory over its own, and its
/// closeness to the base, e^−KL: each 1 for the best.
///
/// Not by perplexity, which a model can better by being damaged: on texts unlike those that it was
/// made for.
///
/// A row whose speed the rounds do not tell from the fastest's counts as equally fast: a pick must
/// not hang on noise.
pub(crate) fn score(rows: &mut [Row], weights: Weights, ratio: Ratio<'_>) {
    let fastest = top(rows, |r| Some(-speed_and_memory(r)?.1));
    let fastest = fastest.and_then(|row| Some((row.id.clone(), row.decode?.point)));
    let smallest = best(rows, |r| Some(speed_and_memory(r)?.0), f64::min);
    for row in rows {
        row.balance = (|| {
            let (id, rate) = fastest.as_ref()?;
            let tied = ratio(id, &row.id).is_some_and(|r| r.low <= 1.0);
            let speed = if tied { 1.0 } else { row.decode?.point / rate };
            let memory = smallest? / row.needed_memory?.0 as f64;
            let quality = (-row.kl?.point).exp();
            Some(weights.throughput * speed + weights.memory * memory + weights.quality * quality)
        })();
    }
}

fn best(
    rows: &[Row],
    of: impl Fn(&Row) -> Option<f64>,
    better: impl Fn(f64, f64) -> f64,
) -> Option<f64> {
    rows.iter().filter_map(of).reduce(better)
}

/// The recommendations that the figures give.
///
/// What the rounds do not tell from the fastest is named beside it.
pub(crate) fn picks(rows: &[Row], required: bool, weights: Weights, ratio: Ratio<'_>) -> Vec<Pick> {
    let mut picks = Vec::new();
    if required && let Some(row) = best_that_meets(rows) {
        let margins: Vec<&str> = row.verdicts.iter().map(|v| v.text.as_str()).collect();
        picks.push(pick(
            "requirements",
            "Best for the requirements",
            row,
            format!("meets every requirement with the best balance: {}", margins.join("; ")),
        ));
    }
    if let Some(row) = top(rows, |r| r.decode.map(|i| i.point)) {
        let why = why_fastest(row) + &as_fast(rows, row, ratio);
        picks.push(pick("fastest", "Fastest", row, why));
    }
    if let Some(row) = top(rows, |r| r.needed_memory.map(|b| -(b.0 as f64))) {
        picks.push(pick("smallest", "Most memory-efficient", row, why_smallest(row)));
    }
    if let Some(row) = best_quality(rows) {
        picks.push(pick("quality", "Best quality below the base", row, why_quality(row)));
    }
    if let Some(row) = top(rows, |r| r.balance) {
        let why = format!(
            "the best balance of throughput ({:.0} %; speeds that the rounds do not tell apart count as equal), memory ({:.0} %) and quality ({:.0} %: e^−KL), {:.3} of 1: {}",
            weights.throughput * 100.0,
            weights.memory * 100.0,
            weights.quality * 100.0,
            row.balance.unwrap_or_default(),
            summary(row)
        );
        picks.push(pick("balanced", "Balanced", row, why));
    }
    picks
}

/// The best-balanced row among those that meet every requirement with confidence.
pub(crate) fn best_that_meets(rows: &[Row]) -> Option<&Row> {
    let meets = |row: &&Row| Verdict::all(row.verdicts.iter().map(|v| v.outcome)) == Verdict::Meets;
    let balance = |row: &&Row| row.balance.unwrap_or(f64::MIN);
    rows.iter().filter(meets).max_by(|a, b| balance(a).total_cmp(&balance(b)))
}

/// What the verdicts of all rows come to.
pub(crate) fn outcome(rows: &[Row], required: bool, complete: bool) -> Outcome {
    let joint = |row: &Row| Verdict::all(row.verdicts.iter().map(|v| v.outcome));
    if !required {
        return Outcome::Explored;
    }
    if best_that_meets(rows).is_some() {
        return Outcome::Met;
    }
    if complete && !rows.is_empty() && rows.iter().all(|row| joint(row) == Verdict::Fails) {
        return Outcome::Unmet;
    }
    if rows.is_empty() && complete { Outcome::Unmet } else { Outcome::Undecided }
}

fn pick(kind: &str, title: &str, row: &Row, why: String) -> Pick {
    Pick { kind: kind.to_owned(), title: title.to_owned(), row: row.id.clone(), why }
}

fn top(rows: &[Row], of: impl Fn(&Row) -> Option<f64>) -> Option<&Row> {
    let scored = rows.iter().filter_map(|row| Some((of(row)?, row)));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, row)| row)
}

/// The smallest KL divergence among the rows that are not the base itself. Quality is of files: other
/// engines that run them have the same.
fn best_quality(rows: &[Row]) -> Option<&Row> {
    let own = |row: &&Row| row.id != crate::BASE && row.conformance.is_none();
    let others = rows.iter().filter(|row| row.kl.is_some()).filter(own);
    others.min_by(|a, b| {
        let kl = |row: &Row| row.kl.map_or(f64::MAX, |i| i.point);
        kl(a).total_cmp(&kl(b)).then(a.size.cmp(&b.size))
    })
}

fn why_fastest(row: &Row) -> String {
    let mut why = row.decode.map_or_else(String::new, |decode| {
        let ends = ends(&decode, three_digits);
        format!("{} decoding one stream{ends}", Unit::Rate.show(decode.point))
    });
    if let Some(ratio) = row.speed_ratio.filter(|_| row.id != crate::BASE) {
        let ends = ends(&ratio, |times| format!("{times:.2}"));
        why += &format!(", {:.2} times the base{ends}", ratio.point);
    }
    why
}

/// The ends of an interval, where the rounds bound it.
fn ends(of: &Interval, show: impl Fn(f64) -> String) -> String {
    if of.is_vague() {
        return " (these rounds hardly bound it)".to_owned();
    }
    format!(" ({} to {})", show(of.low), show(of.high))
}

/// The rows that the rounds do not tell from the fastest.
fn as_fast(rows: &[Row], fastest: &Row, ratio: &dyn Fn(&str, &str) -> Option<Interval>) -> String {
    let close: Vec<&str> = rows
        .iter()
        .filter(|row| row.id != fastest.id)
        .filter(|row| ratio(&fastest.id, &row.id).is_some_and(|r| r.low <= 1.0))
        .map(|row| row.label.as_str())
        .collect();
    if close.is_empty() {
        String::new()
    } else {
        format!("; too close to call: {}", close.join(", "))
    }
}

fn why_smallest(row: &Row) -> String {
    let memory = row.needed_memory.unwrap_or_default();
    format!("{memory} of memory while it runs, {} on disk; {}", row.size, quality(row))
}

fn why_quality(row: &Row) -> String {
    let share = row.bits_per_weight;
    format!("{} at {share:.2} bits per weight ({})", quality(row), row.size)
}

fn quality(row: &Row) -> String {
    let kl = row.kl.map(|kl| format!("KL {}", Unit::Nats.show(kl.point)));
    let ppl = row.perplexity_ratio.map(|r| format!("perplexity {}", Unit::Increase.show(r.point)));
    [kl, ppl].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn summary(row: &Row) -> String {
    let speed = row.decode.map(|d| Unit::Rate.show(d.point));
    let memory = row.needed_memory.map(|m| m.to_string());
    let parts = [speed, memory, Some(quality(row))];
    parts.into_iter().flatten().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, decode: f64, memory: u64, kl: f64) -> Row {
        Row {
            id: id.to_owned(),
            label: id.to_owned(),
            decode: Some(Interval::exact(decode)),
            needed_memory: Some(lathe_base::Bytes(memory)),
            kl: Some(Interval::exact(kl)),
            ..Row::default()
        }
    }

    #[test]
    fn a_lead_in_speed_that_is_noise_does_not_decide_the_balance() {
        let mut rows = vec![row("fast", 105.0, 200, 0.1), row("small", 100.0, 100, 0.1)];
        let noise = |_: &str, _: &str| Some(Interval { low: 0.9, ..Interval::exact(1.05) });
        score(&mut rows, Weights { throughput: 1.0, memory: 0.01, quality: 0.0 }, &noise);
        assert!(rows[1].balance > rows[0].balance);
        let told = |_: &str, _: &str| Some(Interval { low: 1.03, ..Interval::exact(1.05) });
        score(&mut rows, Weights { throughput: 1.0, memory: 0.01, quality: 0.0 }, &told);
        assert!(rows[0].balance > rows[1].balance);
    }

    #[test]
    fn a_damaged_model_is_not_balanced_however_small_its_perplexity() {
        let mut rows = vec![row("whole", 100.0, 100, 0.01), row("damaged", 104.0, 95, 0.8)];
        rows[0].perplexity = Some(Interval::exact(30.0));
        rows[1].perplexity = Some(Interval::exact(20.0));
        let weights = Weights { throughput: 0.4, memory: 0.3, quality: 0.3 };
        score(&mut rows, weights, &|_, _| None);
        assert!(rows[0].balance > rows[1].balance);
    }

    #[test]
    fn the_frontier_keeps_what_nothing_beats() {
        let points = [Some((1.0, 5.0)), Some((2.0, 3.0)), Some((3.0, 4.0)), None, Some((2.0, 3.0))];
        let kept: Vec<usize> = (0..points.len()).filter(|&i| on_frontier(&points, i)).collect();
        assert_eq!(kept, [0, 1, 4], "equal points stay, beaten and unmeasured ones go");
    }
}
