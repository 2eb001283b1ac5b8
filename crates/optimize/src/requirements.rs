use lathe_base::{Bytes, Seconds};
use lathe_report::Row;
use lathe_stats::{Bound, Interval};
use serde::{Deserialize, Serialize};

/// What the user needs from a deployment. Everything is optional.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Requirements {
    pub max_memory: Option<Bytes>,
    pub max_size: Option<Bytes>,
    /// Tokens per second of one stream.
    pub min_decode_tps: Option<f64>,
    /// Tokens per second of all streams together, at the batch asked for.
    pub min_throughput: Option<f64>,
    pub max_ttft: Option<Seconds>,
    /// 90th percentile of the inter-token latency.
    pub max_itl: Option<Seconds>,
    /// Mean KL divergence from the unquantized model, nats per token.
    pub max_kl: Option<f64>,
    /// As a share: 0.02 for 2 %.
    pub max_ppl_increase: Option<f64>,
    /// Share of positions, 0..1.
    pub min_top1: Option<f64>,
    /// Multiple-choice accuracy, 0..1.
    pub min_accuracy: Option<f64>,
    /// Per million generated tokens, in the currency of the price per hour.
    pub max_cost: Option<f64>,
}

/// One requirement, ready to be judged.
#[derive(Clone, Debug)]
pub(crate) struct Requirement {
    /// The flag without dashes.
    pub(crate) name: &'static str,
    pub(crate) bound: Bound,
    pub(crate) unit: Unit,
    /// What is measured, in words.
    pub(crate) what: &'static str,
    /// Where the figure stands in a row of the report.
    pub(crate) figure: fn(&Row, usize) -> Option<Interval>,
}

/// How a figure is written for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Memory,
    Time,
    Rate,
    Nats,
    Share,
    /// A ratio shown as the percentage above 1.
    Increase,
    Money,
}

impl Unit {
    /// An interval with its unit once.
    pub(crate) fn range(self, low: f64, high: f64) -> String {
        match self {
            Self::Rate | Self::Nats | Self::Money => {
                format!("{} to {}", three_digits(low), three_digits(high))
            }
            _ => format!("{} to {}", self.show(low), self.show(high)),
        }
    }

    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::Memory => Bytes(value.max(0.0) as u64).to_string(),
            Self::Time => Seconds(value).to_string(),
            Self::Rate => format!("{} tokens/s", three_digits(value)),
            Self::Nats => format!("{} nats/token", three_digits(value)),
            Self::Share => format!("{:.1} %", value * 100.0),
            Self::Increase => format!("{:+.2} %", (value - 1.0) * 100.0),
            Self::Money => format!("{} per million tokens", three_digits(value)),
        }
    }
}

/// Three significant digits, without an exponent for everyday magnitudes.
pub(crate) fn three_digits(value: f64) -> String {
    let magnitude = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    match magnitude {
        3.. => format!("{value:.0}"),
        -5..=2 => format!("{value:.*}", (2 - magnitude) as usize),
        _ => format!("{value:.2e}"),
    }
}

impl Requirements {
    /// Whether anything is required.
    pub fn is_empty(&self) -> bool {
        self.list().is_empty()
    }

    /// The requirements that were given, in the order in which they are shown.
    pub(crate) fn list(&self) -> Vec<Requirement> {
        use Bound::{AtLeast, AtMost};
        let mut list = Vec::new();
        let mut add = |name, bound: Option<Bound>, unit, what, figure| {
            if let Some(bound) = bound {
                list.push(Requirement { name, bound, unit, what, figure });
            }
        };
        add(
            "max-memory",
            self.max_memory.map(|b| AtMost(b.0 as f64)),
            Unit::Memory,
            "peak memory",
            |row, _| row.needed_memory.map(|b| Interval::exact(b.0 as f64)),
        );
        add(
            "max-size",
            self.max_size.map(|b| AtMost(b.0 as f64)),
            Unit::Memory,
            "size on disk",
            |row, _| Some(Interval::exact(row.size.0 as f64)),
        );
        add(
            "min-decode-tps",
            self.min_decode_tps.map(AtLeast),
            Unit::Rate,
            "decode speed of one stream",
            |row, _| row.decode,
        );
        add(
            "min-throughput",
            self.min_throughput.map(AtLeast),
            Unit::Rate,
            "throughput of all streams",
            |row, batch| row.throughput(batch),
        );
        add(
            "max-ttft",
            self.max_ttft.map(|s| AtMost(s.0)),
            Unit::Time,
            "time to first token",
            |row, _| row.ttft,
        );
        add(
            "max-itl",
            self.max_itl.map(|s| AtMost(s.0)),
            Unit::Time,
            "inter-token latency (p90)",
            |row, _| row.itl_p90,
        );
        add("max-kl", self.max_kl.map(AtMost), Unit::Nats, "KL divergence", |row, _| row.kl);
        add(
            "max-ppl-increase",
            self.max_ppl_increase.map(|x| AtMost(1.0 + x)),
            Unit::Increase,
            "perplexity increase",
            |row, _| row.perplexity_ratio,
        );
        add("min-top1", self.min_top1.map(AtLeast), Unit::Share, "top-1 agreement", |row, _| {
            row.top1
        });
        add(
            "min-accuracy",
            self.min_accuracy.map(AtLeast),
            Unit::Share,
            "multiple-choice accuracy",
            |row, _| row.accuracy,
        );
        add("max-cost", self.max_cost.map(AtMost), Unit::Money, "cost", |row, _| {
            row.cost_per_million
        });
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_show_three_digits() {
        for (value, text) in [
            (0.0, "0.00"),
            (12345.0, "12345"),
            (123.4, "123"),
            (12.34, "12.3"),
            (0.01234, "0.0123"),
            (0.000_123_4, "0.000123"),
            (1.2e-9, "1.20e-9"),
        ] {
            assert_eq!(three_digits(value), text);
        }
        assert_eq!(Unit::Increase.show(1.0234), "+2.34 %");
    }

    #[test]
    fn only_given_requirements_are_judged() {
        assert!(Requirements::default().is_empty());
        let some = Requirements { max_kl: Some(0.02), ..Requirements::default() };
        let list = some.list();
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].name, "max-kl");
    }
}
