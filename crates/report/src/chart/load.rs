use super::{
    frame::{Area, HEAD, WIDTH, axes, header},
    scale::{Scale, tick_label},
    svg::{Anchor, Ink, Svg, Text, width_of},
};
use crate::LoadCurve;

const HEIGHT: f64 = 420.0;
/// Latencies that spread further than this are drawn on a logarithmic axis.
const WIDE: f64 = 20.0;

/// Latency against throughput: a whole line of medians with their intervals, a thin one of 99th
/// percentiles. Points are joined in the order of load, so that a line turns back where more load
/// gives less.
pub(crate) fn load(title: &str, subtitle: &str, curves: &[LoadCurve]) -> String {
    let mut svg = Svg::new(WIDTH, HEIGHT, title);
    header(&mut svg, title, subtitle);
    let room = curves.iter().map(|c| width_of(&c.label, 11.0)).fold(0.0, f64::max).min(160.0);
    let area = Area { left: 84.0, right: WIDTH - 70.0 - room, top: HEAD, bottom: HEIGHT - 48.0 };
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let heights = || points().flat_map(|p| [p.p50.point * 1e3, p.p99.point * 1e3]);
    let (low, high) = heights()
        .filter(|ms| *ms > 0.0)
        .fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), ms| (low.min(ms), high.max(ms)));
    let x = Scale::linear(points().map(|p| p.throughput), true).onto(area.left, area.right);
    let y = match high > WIDE * low {
        true => Scale::log(heights()),
        false => Scale::linear(heights(), true),
    };
    let y = y.onto(area.bottom, area.top);
    let label = "output tokens per second";
    axes(&mut svg, &area, (&x, label, tick_label), (&y, "milliseconds", tick_label));
    for (index, curve) in curves.iter().enumerate() {
        let ink = Ink::Series(index);
        let places = |of: fn(&crate::LoadPoint) -> f64| -> Vec<(f64, f64)> {
            curve.points.iter().map(|p| (x.at(p.throughput), y.at(of(p) * 1e3))).collect()
        };
        let (middle, tail) = (places(|p| p.p50.point), places(|p| p.p99.point));
        svg.path(&middle, ink, 2.2);
        svg.path(&tail, ink, 0.9);
        for (point, (median, last)) in curve.points.iter().zip(middle.iter().zip(&tail)) {
            if point.p50.high < 1e300 {
                let ends = [point.p50.low, point.p50.high].map(|s| (median.0, y.at(s * 1e3)));
                svg.whisker(ends[0], ends[1], ink);
            }
            svg.dot(*median, 4.0, ink);
            svg.ring(*last, 3.0, ink);
        }
        for (places, name) in [(&middle, "p50"), (&tail, "p99")] {
            let Some(end) = places.last() else { continue };
            let look = Text::new(11.0).anchor(Anchor::Start).ink(ink).halo();
            svg.text((end.0 + 9.0, end.1 + 4.0), &format!("{} {name}", curve.label), look);
        }
    }
    svg.finish()
}
