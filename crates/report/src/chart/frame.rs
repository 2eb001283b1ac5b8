use super::{
    scale::Scale,
    svg::{Anchor, Ink, Svg, Text, width_of},
};

/// Every chart is this wide.
pub(crate) const WIDTH: f64 = 760.0;

/// Room for title and subtitle above the drawing.
pub(crate) const HEAD: f64 = 64.0;

/// Title and subtitle.
pub(crate) fn header(svg: &mut Svg, title: &str, subtitle: &str) {
    svg.text((16.0, 26.0), title, Text::new(16.0).bold());
    svg.text((16.0, 45.0), subtitle, Text::new(11.5).ink(Ink::Faint));
}

/// A small text centred at a place, moved so that it stays between `limits`.
pub(crate) fn note(svg: &mut Svg, at: (f64, f64), text: &str, limits: (f64, f64)) {
    let half = width_of(text, 11.0) / 2.0;
    let x = at.0.max(limits.0 + half).min(limits.1 - half);
    svg.text((x, at.1), text, Text::new(11.0).anchor(Anchor::Middle).ink(Ink::Alarm));
}

/// The plotting area of a chart with two axes.
pub(crate) struct Area {
    pub(crate) left: f64,
    pub(crate) right: f64,
    pub(crate) top: f64,
    pub(crate) bottom: f64,
}

/// Grid lines and tick labels on both axes, and what the axes show.
pub(crate) fn axes(
    svg: &mut Svg,
    area: &Area,
    x: (&Scale, &str, fn(f64) -> String),
    y: (&Scale, &str, fn(f64) -> String),
) {
    for tick in x.0.ticks(6) {
        let at = x.0.at(tick);
        svg.line((at, area.top), (at, area.bottom), Ink::Grid, 1.0);
        let look = Text::new(11.0).anchor(Anchor::Middle).ink(Ink::Faint);
        svg.text((at, area.bottom + 16.0), &x.2(tick), look);
    }
    for tick in y.0.ticks(5) {
        let at = y.0.at(tick);
        svg.line((area.left, at), (area.right, at), Ink::Grid, 1.0);
        let look = Text::new(11.0).anchor(Anchor::End).ink(Ink::Faint);
        svg.text((area.left - 7.0, at + 4.0), &y.2(tick), look);
    }
    let middle = (area.left + area.right) / 2.0;
    svg.text((middle, area.bottom + 34.0), x.1, Text::new(12.0).anchor(Anchor::Middle));
    let middle = (area.top + area.bottom) / 2.0;
    svg.text((16.0, middle), y.1, Text::new(12.0).anchor(Anchor::Middle).upright());
}
