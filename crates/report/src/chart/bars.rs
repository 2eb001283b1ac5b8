use lathe_stats::Interval;

use super::{
    frame::{HEAD, WIDTH, header, note},
    scale::{Scale, tick_label},
    svg::{Anchor, Ink, Svg, Text, width_of},
};

/// One configuration in a chart of bars or dots.
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) ink: Ink,
    pub(crate) value: Interval,
    /// A second quantity on the same axis, drawn thinner inside the bar.
    pub(crate) inner: Option<f64>,
    /// The value as people read it.
    pub(crate) text: String,
}

/// Horizontal bars from zero, or dots on an axis that does not begin at zero.
pub(crate) struct Bars<'a> {
    pub(crate) title: &'a str,
    /// What the axis shows, and which way is better.
    pub(crate) subtitle: &'a str,
    pub(crate) bars: Vec<Bar>,
    pub(crate) style: Style,
    /// A line across all bars, with its label.
    pub(crate) mark: Option<(f64, String)>,
    /// How the values along the axis are written.
    pub(crate) tick: fn(f64) -> String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Bars from zero.
    Bars,
    /// Dots with their intervals; for quantities whose zero means nothing.
    Dots,
    /// Dots on a logarithmic axis.
    LogDots,
}

const ROW: f64 = 26.0;
const SIZE: f64 = 12.0;

/// A label for a plain number.
pub(crate) fn plain(value: f64) -> String {
    tick_label(value)
}

/// Draws the chart.
pub(crate) fn bars(chart: &Bars<'_>) -> String {
    let rows = chart.bars.len() as f64;
    let bottom = HEAD + rows * ROW;
    let mut svg = Svg::new(WIDTH, bottom + 44.0, chart.title);
    header(&mut svg, chart.title, chart.subtitle);
    let labels = chart.bars.iter().map(|b| width_of(&b.label, SIZE)).fold(0.0, f64::max);
    let texts = chart.bars.iter().map(|b| width_of(&b.text, SIZE)).fold(0.0, f64::max);
    let left = 24.0 + labels.min(230.0);
    let right = WIDTH - 24.0 - texts.min(220.0);
    let scale = scale(chart).onto(left, right);
    for tick in scale.ticks(5) {
        let x = scale.at(tick);
        svg.line((x, HEAD - 4.0), (x, bottom + 4.0), Ink::Grid, 1.0);
        let look = Text::new(11.0).anchor(Anchor::Middle).ink(Ink::Faint);
        svg.text((x, bottom + 20.0), &(chart.tick)(tick), look);
    }
    for (index, bar) in chart.bars.iter().enumerate() {
        row(&mut svg, chart, bar, &scale, HEAD + index as f64 * ROW);
    }
    if let Some((value, label)) = &chart.mark {
        let x = scale.at(*value);
        svg.dashed((x, HEAD - 4.0), (x, bottom + 4.0), Ink::Alarm);
        note(&mut svg, (x, bottom + 36.0), label, (left, WIDTH - 16.0));
    }
    svg.finish()
}

fn scale(chart: &Bars<'_>) -> Scale {
    let values = chart.bars.iter().flat_map(|bar| {
        let ends = [bar.value.low, bar.value.high];
        let shown = ends.into_iter().filter(|end| *end > 0.0 && *end < 1e300);
        shown.chain([bar.value.point]).chain(bar.inner).collect::<Vec<_>>()
    });
    let all = values.chain(chart.mark.iter().map(|(value, _)| *value));
    match chart.style {
        Style::Bars => Scale::linear(all, true),
        Style::Dots => Scale::linear(all, false),
        Style::LogDots => Scale::log(all),
    }
}

fn row(svg: &mut Svg, chart: &Bars<'_>, bar: &Bar, scale: &Scale, top: f64) {
    let middle = top + ROW / 2.0;
    let zero = scale.at(0.0);
    let (x, low, high) =
        (scale.at(bar.value.point), scale.at(bar.value.low), scale.at(bar.value.high));
    let look = Text::new(SIZE).anchor(Anchor::End).ink(bar.ink);
    let look = if bar.ink == Ink::Pick { look.bold() } else { look };
    svg.text((zero.min(scale.at(f64::MIN)) - 8.0, middle + 4.0), &bar.label, look);
    let spread = bar.value.high > bar.value.low && bar.value.high < 1e300;
    if chart.style == Style::Bars {
        svg.rect(zero, middle - 8.0, x - zero, 16.0, bar.ink);
        if let Some(inner) = bar.inner {
            svg.rect(zero, middle - 3.0, scale.at(inner) - zero, 6.0, Ink::Second);
        }
        if spread {
            svg.line((low, middle), (high, middle), Ink::Text, 1.6);
            for end in [low, high] {
                svg.line((end, middle - 4.0), (end, middle + 4.0), Ink::Text, 1.6);
            }
        }
    } else {
        if spread {
            svg.line((low, middle), (high, middle), bar.ink, 2.4);
        }
        match bar.ink {
            Ink::Base => svg.ring((x, middle), 5.0, bar.ink),
            Ink::Pick => svg.diamond((x, middle), 7.0, bar.ink),
            ink => svg.dot((x, middle), 5.0, ink),
        }
    }
    svg.text((WIDTH - 16.0, middle + 4.0), &bar.text, Text::new(SIZE).anchor(Anchor::End));
}
