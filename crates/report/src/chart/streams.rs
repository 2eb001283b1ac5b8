use super::{
    far_apart,
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

/// From the ends of lines to their labels.
const LEAD: f64 = 22.0;

/// Between the labels of neighbours.
const TALL: f64 = 13.0;

/// Lines that end in their labels.
pub(crate) fn streams(title: &str, subtitle: &str, lines: &[Line]) -> String {
    let mut svg = Svg::new(WIDTH, HEIGHT, title);
    header(&mut svg, title, subtitle);
    let room = lines.iter().map(|l| width_of(&l.label, 11.0)).fold(0.0, f64::max).min(WIDTH / 3.0);
    let area =
        Area { left: 78.0, right: WIDTH - 20.0 - LEAD - room, top: HEAD, bottom: HEIGHT - 48.0 };
    let all = || lines.iter().flat_map(|l| l.points.iter().copied());
    let mut counts: Vec<f64> = all().map(|p| p.0).collect();
    counts.sort_by(f64::total_cmp);
    counts.dedup();
    let x = Scale::log(counts.iter().copied()).onto(area.left, area.right).with_ticks(counts);
    // Engines may be a hundred times apart; the most that each reaches tells.
    let log = far_apart(lines.iter().map(|l| l.points.iter().map(|p| p.1).fold(0.0, f64::max)));
    let (y, label) = if log {
        (Scale::log(all().map(|p| p.1)), "tokens per second (log)")
    } else {
        (Scale::linear(all().map(|p| p.1), true), "tokens per second")
    };
    let y = y.onto(area.bottom, area.top);
    axes(&mut svg, &area, (&x, "streams", tick_label), (&y, label, tick_label));
    let mut ends = Vec::new();
    for line in lines {
        let points: Vec<(f64, f64)> = line.points.iter().map(|p| (x.at(p.0), y.at(p.1))).collect();
        svg.path(&points, line.ink, 1.8);
        for point in &points {
            svg.dot(*point, 3.0, line.ink);
        }
        if let Some(end) = points.last() {
            ends.push((*end, line));
        }
    }
    ends.sort_by(|a, b| a.0.1.total_cmp(&b.0.1));
    let heights: Vec<f64> = ends.iter().map(|end| end.0.1).collect();
    for ((end, line), at) in ends.iter().zip(apart(&heights, area.top, area.bottom)) {
        svg.line((end.0 + 5.0, end.1), (area.right + LEAD, at), line.ink, 0.8);
        let look = Text::new(11.0).anchor(Anchor::Start).ink(line.ink);
        svg.text((area.right + LEAD + 3.0, at + 4.0), &line.label, look);
    }
    svg.finish()
}

/// Heights, smallest first, moved so that labels have room for a line each: down where they must,
/// and up again where they would leave the area.
fn apart(heights: &[f64], top: f64, bottom: f64) -> Vec<f64> {
    let mut next = top;
    let mut places: Vec<f64> = heights
        .iter()
        .map(|height| {
            let at = height.max(next);
            next = at + TALL;
            at
        })
        .collect();
    let mut most = bottom;
    for place in places.iter_mut().rev() {
        *place = place.min(most);
        most = *place - TALL;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throughputs_a_hundred_times_apart_are_drawn_on_a_logarithmic_axis() {
        let line = |most: f64| Line {
            label: format!("up to {most}"),
            ink: Ink::Main,
            points: vec![(1.0, most / 2.0), (8.0, most)],
        };
        let near = streams("Streams", "", &[line(900.0), line(400.0)]);
        let far = streams("Streams", "", &[line(900.0), line(4.0)]);
        assert!(!near.contains("(log)") && far.contains("tokens per second (log)"), "{far}");
    }

    #[test]
    fn labels_keep_their_order_their_distance_and_the_area() {
        assert_eq!(apart(&[50.0, 51.0, 90.0], 40.0, 200.0), [50.0, 63.0, 90.0]);
        assert_eq!(apart(&[190.0, 199.0, 200.0], 40.0, 200.0), [174.0, 187.0, 200.0]);
        assert_eq!(apart(&[10.0], 40.0, 200.0), [40.0]);
    }
}
