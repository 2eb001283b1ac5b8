use crate::error::check_probability;
use crate::special::normal_quantile;
use crate::{Error, Interval, Method};

/// Wilson's score interval of `hits` out of `n` independent trials.
///
/// Unlike the normal interval it does not collapse at 0 % and 100 %.
///
/// # Errors
/// [`Error::TooFew`] without trials; [`Error::BadProbability`] for the level, or where there are
/// more hits than trials.
pub fn wilson(hits: usize, n: usize, level: f64) -> Result<Interval, Error> {
    if n == 0 {
        return Err(Error::TooFew { what: "a proportion", needed: 1, found: 0 });
    }
    check_probability("a confidence level", level)?;
    let (total, share) = (n as f64, hits as f64 / n as f64);
    if hits > n {
        return Err(Error::BadProbability { what: "a proportion", value: share });
    }
    let z = normal_quantile(1.0 - (1.0 - level) / 2.0);
    let scale = 1.0 + z * z / total;
    let centre = (share + z * z / (2.0 * total)) / scale;
    let reach = z / scale * (share * (1.0 - share) / total + z * z / (4.0 * total * total)).sqrt();
    Ok(Interval {
        low: (centre - reach).clamp(0.0, share),
        point: share,
        high: (centre + reach).clamp(share, 1.0),
        level,
        n,
        method: Method::Wilson,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_a_hand_computed_interval() {
        // Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
        let i = wilson(81, 263, 0.95).unwrap();
        assert!((i.low - 0.2553).abs() < 5e-5 && (i.high - 0.3662).abs() < 5e-5, "{i:?}");
    }

    #[test]
    fn all_hits_leave_room_below() {
        let i = wilson(10, 10, 0.95).unwrap();
        assert_eq!(i.high, 1.0);
        assert!(i.low < 0.75);
        assert_eq!(wilson(0, 10, 0.95).unwrap().low, 0.0);
    }

    #[test]
    fn rejects_no_trials_and_too_many_hits() {
        assert!(wilson(0, 0, 0.95).is_err());
        assert!(wilson(2, 1, 0.95).is_err());
    }
}
