//! What follows `--load`.

use std::path::PathBuf;

use lathe_bench::load::{Pattern, Spacing};

/// How requests come, as it was typed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) typed: String,
    pub(crate) kind: Kind,
    /// Where it is one of MLPerf's.
    pub(crate) scenario: Option<Scenario>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// One after the other.
    Levels(Vec<Pattern>),
    /// Rates are chosen as the sweep goes.
    Sweep(Spacing),
    Trace(PathBuf),
}

/// MLPerf inference's scenarios.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    SingleStream,
    Server,
    Offline,
}

const WRITE: &str = "write closed:8, constant:2, poisson:2, gamma:0.5:2 (burstiness, then rate), \
                     lists of them such as poisson:1,2,4, sweep, trace:FILE, or MLPerf's \
                     single-stream, server:RATE and offline";

/// Reads a shape.
pub(crate) fn shape(text: &str) -> Result<Shape, String> {
    let typed = text.trim();
    let (name, rest) = typed.split_once(':').unwrap_or((typed, ""));
    let bad = || format!("`{typed}` is no shape of load; {WRITE}");
    let rates = |list: &str, spacing: Spacing| {
        let rate = |text: &str| match text.trim().parse::<f64>() {
            Ok(rate) if rate > 0.0 && rate <= 1e6 => Ok(Pattern::Open { rate, spacing }),
            _ => Err(format!("`{text}` is no rate in requests per second; {WRITE}")),
        };
        list.split(',').map(rate).collect::<Result<Vec<_>, _>>().map(Kind::Levels)
    };
    let users = |text: &str| match text.trim().parse::<usize>() {
        Ok(users) if (1..=100_000).contains(&users) => Ok(Pattern::Closed { users }),
        _ => Err(format!("`{text}` is no number of users; {WRITE}")),
    };
    let (kind, scenario) = match (name, rest) {
        ("closed", list) => {
            (Kind::Levels(list.split(',').map(users).collect::<Result<_, _>>()?), None)
        }
        ("constant", list) => (rates(list, Spacing::Constant)?, None),
        ("poisson", list) => (rates(list, Spacing::Poisson)?, None),
        ("gamma", rest) => {
            let (burstiness, list) = rest.split_once(':').ok_or_else(bad)?;
            let shape = burstiness.trim().parse::<f64>().ok();
            let shape = shape.filter(|shape| (0.01..=1000.0).contains(shape)).ok_or_else(bad)?;
            (rates(list, Spacing::Gamma(shape))?, None)
        }
        ("sweep", "" | "poisson") => (Kind::Sweep(Spacing::Poisson), None),
        ("sweep", "constant") => (Kind::Sweep(Spacing::Constant), None),
        ("trace", file) if !file.is_empty() => (Kind::Trace(file.into()), None),
        ("single-stream", "") => {
            (Kind::Levels(vec![Pattern::Closed { users: 1 }]), Some(Scenario::SingleStream))
        }
        ("server", list) => (rates(list, Spacing::Poisson)?, Some(Scenario::Server)),
        ("offline", "") => (Kind::Levels(vec![Pattern::Offline]), Some(Scenario::Offline)),
        _ => return Err(bad()),
    };
    Ok(Shape { typed: typed.to_owned(), kind, scenario })
}

/// A level in a few words.
pub(crate) fn words(pattern: &Pattern) -> String {
    match pattern {
        Pattern::Closed { users: 1 } => "1 user".to_owned(),
        Pattern::Closed { users } => format!("{users} users"),
        Pattern::Open { rate, spacing } => {
            let rate = format!("{rate:.3}");
            let rate = rate.trim_end_matches('0').trim_end_matches('.');
            match spacing {
                Spacing::Constant => format!("constant {rate}/s"),
                Spacing::Poisson => format!("poisson {rate}/s"),
                Spacing::Gamma(shape) => format!("gamma({shape}) {rate}/s"),
            }
        }
        Pattern::Offline => "all at once".to_owned(),
        Pattern::Timed { .. } => "trace".to_owned(),
    }
}

/// Reads `FROM..TO`, either of which may be left out.
pub(crate) fn window(text: &str) -> Result<(f64, f64), String> {
    let (from, to) = text
        .split_once("..")
        .ok_or_else(|| format!("`{text}` is no window; write it like 10m..11m, ..60s or 30s.."))?;
    let time = |text: &str, otherwise: f64| match text.trim() {
        "" => Ok(otherwise),
        text => text.parse().map(|s: lathe_base::Seconds| s.0).map_err(|error| error.to_string()),
    };
    let (from, to) = (time(from, 0.0)?, time(to, f64::INFINITY)?);
    if from < to { Ok((from, to)) } else { Err(format!("`{text}` ends before it begins")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read() {
        let levels = |text: &str| match shape(text).unwrap().kind {
            Kind::Levels(levels) => levels.iter().map(words).collect::<Vec<_>>(),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(levels("closed:1,8"), ["1 user", "8 users"]);
        assert_eq!(levels("poisson:0.5,2"), ["poisson 0.5/s", "poisson 2/s"]);
        assert_eq!(levels("gamma:0.25:4"), ["gamma(0.25) 4/s"]);
        assert_eq!(levels("constant:10"), ["constant 10/s"]);
        assert_eq!(levels("offline"), ["all at once"]);
        assert_eq!(shape("server:3").unwrap().scenario, Some(Scenario::Server));
        assert_eq!(shape("sweep").unwrap().kind, Kind::Sweep(Spacing::Poisson));
        assert_eq!(shape("trace:a:b.csv").unwrap().kind, Kind::Trace("a:b.csv".into()));
    }

    #[test]
    fn what_is_no_shape_is_told_how_to_be_one() {
        for bad in [
            "",
            "closed",
            "closed:0",
            "poisson",
            "poisson:0",
            "poisson:-1",
            "poisson:inf",
            "gamma:2",
            "gamma:0:2",
            "trace:",
            "sweep:x",
            "offline:3",
            "burst:2",
        ] {
            let told = shape(bad).unwrap_err();
            assert!(told.contains("write closed:8"), "{bad}: {told}");
        }
    }

    #[test]
    fn windows_may_be_open() {
        assert_eq!(window("10m..11m"), Ok((600.0, 660.0)));
        assert_eq!(window("..60s"), Ok((0.0, 60.0)));
        assert_eq!(window("5.."), Ok((5.0, f64::INFINITY)));
        for bad in ["5", "6..5", "x..y"] {
            assert!(window(bad).is_err(), "{bad}");
        }
    }
}
