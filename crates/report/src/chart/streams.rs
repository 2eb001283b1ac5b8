use super::{
    frame::{Area, HEAD, WIDTH, axes, header},
    scale::{Scale, tick_label},
    svg::{Anchor, Ink, Svg, Text, width_of},
};

/// Throughput of one configuration by number of streams.
pub(crate) struct Line {
    pub(crate) label: String,
    pub(crate) ink: Ink,
    /// `(streams, tokens per second)`.
    pub(crate) points: Vec<(f64, f64)>,
}

const HEIGHT: f64 = 420.0;

/// Lines that end in their labels.
pub(crate) fn streams(title: &str, subtitle: &str, lines: &[Line]) -> String {
    let mut svg = Svg::new(WIDTH, HEIGHT, title);
    header(&mut svg, title, subtitle);
    let room = lines.iter().map(|l| width_of(&l.label, 11.0)).fold(0.0, f64::max).min(190.0);
    let area = Area { left: 78.0, right: WIDTH - 28.0 - room, top: HEAD, bottom: HEIGHT - 48.0 };
    let all = || lines.iter().flat_map(|l| l.points.iter().copied());
    let mut counts: Vec<f64> = all().map(|p| p.0).collect();
    counts.sort_by(f64::total_cmp);
    counts.dedup();
    let x = Scale::log(counts.iter().copied()).onto(area.left, area.right).with_ticks(counts);
    let y = Scale::linear(all().map(|p| p.1), true).onto(area.bottom, area.top);
    axes(&mut svg, &area, (&x, "streams", tick_label), (&y, "tokens per second", tick_label));
    let mut ends = Vec::new();
    for line in lines {
        let points: Vec<(f64, f64)> = line.points.iter().map(|p| (x.at(p.0), y.at(p.1))).collect();
        svg.path(&points, line.ink, 1.8);
        for point in &points {
            svg.dot(*point, 3.0, line.ink);
        }
        if let Some(end) = points.last() {
            ends.push((end.1, line));
        }
    }
    // Labels keep their order and a line's height between them.
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut next = area.top;
    for (height, line) in ends {
        let at = height.max(next);
        next = at + 13.0;
        let look = Text::new(11.0).anchor(Anchor::Start).ink(line.ink);
        svg.text((area.right + 8.0, at + 4.0), &line.label, look);
    }
    svg.finish()
}
