use super::{
    frame::{HEAD, WIDTH, header},
    scale::Scale,
    svg::{Anchor, Ink, Svg, Text, width_of},
};

/// Inter-token latency of one configuration, in milliseconds.
pub(crate) struct Latency {
    pub(crate) label: String,
    pub(crate) ink: Ink,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
}

const ROW: f64 = 26.0;
const SIZE: f64 = 12.0;

/// Dots for the median, ticks for the 90th and 99th percentile, a line between them.
pub(crate) fn latency(title: &str, subtitle: &str, rows: &[Latency]) -> String {
    let bottom = HEAD + rows.len() as f64 * ROW;
    let mut svg = Svg::new(WIDTH, bottom + 44.0, title);
    header(&mut svg, title, subtitle);
    let labels = rows.iter().map(|r| width_of(&r.label, SIZE)).fold(0.0, f64::max);
    let (left, right) = (24.0 + labels.min(230.0), WIDTH - 200.0);
    let scale =
        Scale::linear(rows.iter().flat_map(|r| [r.p50, r.p90, r.p99]), true).onto(left, right);
    for tick in scale.ticks(5) {
        let x = scale.at(tick);
        svg.line((x, HEAD - 4.0), (x, bottom + 4.0), Ink::Grid, 1.0);
        let look = Text::new(11.0).anchor(Anchor::Middle).ink(Ink::Faint);
        svg.text((x, bottom + 20.0), &format!("{} ms", super::scale::tick_label(tick)), look);
    }
    for (index, row) in rows.iter().enumerate() {
        let y = HEAD + (index as f64 + 0.5) * ROW;
        let (p50, p90, p99) = (scale.at(row.p50), scale.at(row.p90), scale.at(row.p99));
        svg.text(
            (left - 8.0, y + 4.0),
            &row.label,
            Text::new(SIZE).anchor(Anchor::End).ink(row.ink),
        );
        svg.line((p50, y), (p99, y), row.ink, 1.6);
        svg.line((p90, y - 5.0), (p90, y + 5.0), row.ink, 2.4);
        svg.line((p99, y - 3.0), (p99, y + 3.0), row.ink, 1.6);
        svg.dot((p50, y), 5.0, row.ink);
        let text = format!("{} / {} / {}", short(row.p50), short(row.p90), short(row.p99));
        svg.text((WIDTH - 16.0, y + 4.0), &text, Text::new(SIZE).anchor(Anchor::End));
    }
    svg.finish()
}

fn short(ms: f64) -> String {
    if ms >= 100.0 {
        format!("{ms:.0}")
    } else if ms >= 10.0 {
        format!("{ms:.1}")
    } else {
        format!("{ms:.2}")
    }
}
