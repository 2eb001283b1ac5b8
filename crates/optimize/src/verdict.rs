use lathe_report::{Row, Verdict};
use lathe_stats::{Bound, Interval, Verdict as Says};

use crate::requirements::{Requirement, Unit};

/// Judges a row against every requirement, each on the end of its interval that speaks against it.
pub(crate) fn verdicts(row: &Row, requirements: &[Requirement], batch: usize) -> Vec<Verdict> {
    requirements.iter().map(|requirement| verdict(row, requirement, batch)).collect()
}

fn verdict(row: &Row, requirement: &Requirement, batch: usize) -> Verdict {
    let (outcome, text) = match (requirement.figure)(row, batch) {
        Some(figure) => (requirement.bound.judge(&figure), describe(requirement, &figure)),
        None => (Says::Undecided, format!("{} was not measured", requirement.what)),
    };
    Verdict { requirement: requirement.name.to_owned(), outcome, text }
}

/// `decode speed of one stream 28.1 tokens/s (27.4 to 28.9), at least 20.0 tokens/s required`.
fn describe(requirement: &Requirement, figure: &Interval) -> String {
    let show = |value| requirement.unit.show(value);
    let spread = if figure.low == figure.high {
        String::new()
    } else if figure.high >= f64::MAX {
        " (one round: no interval yet)".to_owned()
    } else {
        format!(" ({})", requirement.unit.range(figure.low, figure.high))
    };
    format!(
        "{} {}{spread}, {} {} required",
        requirement.what,
        show(figure.point),
        words(requirement.bound),
        show(requirement.bound.limit())
    )
}

/// `at most` or `at least`.
pub(crate) fn words(bound: Bound) -> &'static str {
    match bound {
        Bound::AtMost(_) => "at most",
        Bound::AtLeast(_) => "at least",
    }
}

/// Where nothing meets everything: which single requirement to relax, to what, and who would then
/// meet all; the smallest relative change first.
pub(crate) fn relaxations(rows: &[Row], requirements: &[Requirement], batch: usize) -> Vec<String> {
    let mut options: Vec<(f64, String)> = rows
        .iter()
        .filter_map(|row| {
            let mut unmet =
                requirements.iter().zip(&row.verdicts).filter(|(_, v)| v.outcome != Says::Meets);
            let (requirement, _) = unmet.next()?;
            // Two requirements to relax at once is no advice.
            if unmet.next().is_some() {
                return None;
            }
            let figure = (requirement.figure)(row, batch)?;
            let (limit, safe) = match requirement.bound {
                Bound::AtMost(limit) => (limit, figure.high),
                Bound::AtLeast(limit) => (limit, figure.low),
            };
            let change = change(requirement.unit, limit, safe);
            let text = format!(
                "relax --{} to {}: then {} meets everything",
                requirement.name,
                flag_value(requirement, safe),
                row.label
            );
            change.is_finite().then_some((change, text))
        })
        .collect();
    options.sort_by(|a, b| a.0.total_cmp(&b.0));
    options.into_iter().map(|(_, text)| text).take(3).collect()
}

/// How far a limit has to move, relative to where it stands.
fn change(unit: Unit, limit: f64, to: f64) -> f64 {
    // An increase is a ratio around 1: what moves is the part above 1.
    let base = if unit == Unit::Increase { 1.0 } else { 0.0 };
    let (limit, to) = ((limit - base).abs().max(1e-12), (to - base).abs().max(1e-12));
    (to / limit).ln().abs()
}

/// The value in the form in which the flag takes it, rounded to the safe side.
fn flag_value(requirement: &Requirement, safe: f64) -> String {
    let up = matches!(requirement.bound, Bound::AtMost(_));
    let round = |value: f64, digits: i32| {
        let magnitude = 10f64.powi(digits - 1 - value.abs().max(1e-300).log10().floor() as i32);
        let scaled = value * magnitude;
        (if up { scaled.ceil() } else { scaled.floor() }) / magnitude
    };
    match requirement.unit {
        Unit::Memory => {
            let mib = safe / 1048576.0;
            format!("{}MiB", if up { mib.ceil() } else { mib.floor() })
        }
        Unit::Time => format!("{}ms", round(safe * 1e3, 3)),
        Unit::Increase => format!("{}%", round((safe - 1.0) * 100.0, 2)),
        Unit::Share => format!("{}", round(safe, 3)),
        Unit::Rate | Unit::Nats | Unit::Money => format!("{}", round(safe, 3)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Requirements;

    fn row(id: &str, kl: (f64, f64, f64), decode: (f64, f64, f64)) -> Row {
        let interval = |(low, point, high)| Interval { low, point, high, ..Interval::exact(0.0) };
        Row {
            id: id.to_owned(),
            label: id.to_owned(),
            kl: Some(interval(kl)),
            decode: Some(interval(decode)),
            ..Row::default()
        }
    }

    fn requirements() -> Vec<Requirement> {
        let wanted = Requirements {
            max_kl: Some(0.02),
            min_decode_tps: Some(20.0),
            ..Requirements::default()
        };
        wanted.list()
    }

    #[test]
    fn the_bound_counts_and_the_text_shows_it() {
        let list = requirements();
        let row = row("a", (0.01, 0.015, 0.025), (21.0, 25.0, 30.0));
        let verdicts = verdicts(&row, &list, 1);
        let by_name = |name: &str| verdicts.iter().find(|v| v.requirement == name).unwrap();
        assert_eq!(by_name("min-decode-tps").outcome, Says::Meets);
        assert_eq!(by_name("max-kl").outcome, Says::Undecided);
        assert_eq!(
            by_name("max-kl").text,
            "KL divergence 0.0150 nats/token (0.0100 to 0.0250), at most 0.0200 nats/token required"
        );
    }

    #[test]
    fn what_was_not_measured_is_undecided() {
        let bare = Row { id: "x".to_owned(), ..Row::default() };
        assert!(verdicts(&bare, &requirements(), 1).iter().all(|v| v.outcome == Says::Undecided));
    }

    #[test]
    fn the_smallest_relaxation_comes_first_and_is_safe() {
        let list = requirements();
        let mut rows = vec![
            row("coarse", (0.05, 0.06, 0.07123), (40.0, 41.0, 42.0)),
            row("slow", (0.001, 0.002, 0.003), (18.234, 18.5, 19.0)),
            row("hopeless", (0.5, 0.6, 0.7), (1.0, 1.1, 1.2)),
        ];
        for row in &mut rows {
            row.verdicts = verdicts(row, &list, 1);
        }
        let advice = relaxations(&rows, &list, 1);
        assert_eq!(
            advice,
            [
                "relax --min-decode-tps to 18.2: then slow meets everything",
                "relax --max-kl to 0.0713: then coarse meets everything"
            ]
        );
    }
}
