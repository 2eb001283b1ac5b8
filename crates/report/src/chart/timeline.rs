use super::{
    frame::{HEAD, WIDTH, header},
    scale::{Scale, tick_label},
    svg::{Anchor, Ink, Svg, Text},
};
use crate::Timeline;

const LEFT: f64 = 78.0;
const RIGHT: f64 = WIDTH - 24.0;
const TALL: f64 = 110.0;
const GAP: f64 = 44.0;
/// More points than this are thinned: the eye cannot tell, the page stays small.
const MOST_POINTS: usize = 600;

/// CPU, memory and, where known, frequency over the run, with what ran when below.
pub(crate) fn timeline(title: &str, subtitle: &str, data: &Timeline) -> String {
    let step = data.points.len().div_ceil(MOST_POINTS).max(1);
    let points: Vec<_> = data.points.iter().step_by(step).collect();
    let end = points.last().map_or(1.0, |p| p.at.0).max(1e-3);
    let x = Scale::linear([0.0, end / 1.05], true).onto(LEFT, RIGHT);
    let with_mhz = points.iter().any(|p| p.mhz.is_some_and(|m| m > 0.0));
    let panels = 2.0 + f64::from(u8::from(with_mhz));
    let height = HEAD + panels * (TALL + GAP) + 64.0;
    let mut svg = Svg::new(WIDTH, height, title);
    header(&mut svg, title, subtitle);

    let percent = |v: f64| format!("{} %", tick_label(v));
    let cpu: Vec<_> = points.iter().map(|p| (p.at.0, f64::from(p.cpu) * 100.0)).collect();
    let others: Vec<_> =
        points.iter().filter_map(|p| Some((p.at.0, f64::from(p.others?) * 100.0))).collect();
    let mut top = HEAD + 14.0;
    let labels = ("CPU busy (all cores)", "of it not ours");
    panel(&mut svg, top, &x, labels, &cpu, &others, &percent, Some(100.0));

    top += TALL + GAP;
    let gib = |v: f64| format!("{} GiB", tick_label(v));
    let scale = 1.0 / (1u64 << 30) as f64;
    let used: Vec<_> = points.iter().map(|p| (p.at.0, p.memory.0 as f64 * scale)).collect();
    let ours: Vec<_> =
        points.iter().filter_map(|p| Some((p.at.0, p.ours?.0 as f64 * scale))).collect();
    panel(&mut svg, top, &x, ("Memory in use", "ours"), &used, &ours, &gib, None);

    if with_mhz {
        top += TALL + GAP;
        let mhz: Vec<_> = points.iter().filter_map(|p| Some((p.at.0, f64::from(p.mhz?)))).collect();
        let unit = |v: f64| format!("{} MHz", tick_label(v));
        panel(&mut svg, top, &x, ("Mean core frequency", ""), &mhz, &[], &unit, None);
    }
    spans(&mut svg, top + TALL + 30.0, &x, data);
    for tick in x.ticks(8) {
        let look = Text::new(11.0).anchor(Anchor::Middle).ink(Ink::Faint);
        svg.text((x.at(tick), top + TALL + 18.0), &format!("{} s", tick_label(tick)), look);
    }
    svg.finish()
}

#[allow(clippy::too_many_arguments)] // A panel is drawn in one place; a struct would only rename these.
fn panel(
    svg: &mut Svg,
    top: f64,
    x: &Scale,
    labels: (&str, &str),
    main: &[(f64, f64)],
    part: &[(f64, f64)],
    tick: &dyn Fn(f64) -> String,
    full: Option<f64>,
) {
    let values = main.iter().chain(part).map(|p| p.1).chain(full);
    let y = Scale::linear(values, true).onto(top + TALL, top);
    for value in y.ticks(3) {
        svg.line((LEFT, y.at(value)), (RIGHT, y.at(value)), Ink::Grid, 1.0);
        let look = Text::new(11.0).anchor(Anchor::End).ink(Ink::Faint);
        svg.text((LEFT - 7.0, y.at(value) + 4.0), &tick(value), look);
    }
    let place = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
        points.iter().map(|p| (x.at(p.0), y.at(p.1))).collect()
    };
    let ground = y.at(0.0);
    for (points, ink) in [(main, Ink::Second), (part, Ink::Alarm)] {
        let line = place(points);
        if let (Some(first), Some(last)) = (line.first(), line.last()) {
            let mut shape = vec![(first.0, ground)];
            shape.extend(&line);
            shape.push((last.0, ground));
            svg.area(&shape, ink);
            svg.path(&line, if ink == Ink::Second { Ink::Main } else { ink }, 1.2);
        }
    }
    svg.text((LEFT, top - 6.0), labels.0, Text::new(11.5).bold());
    if !part.is_empty() {
        let after = LEFT + super::svg::width_of(labels.0, 11.5) + 24.0;
        svg.text((after, top - 6.0), labels.1, Text::new(11.5).ink(Ink::Alarm));
    }
}

/// What ran when, in alternating shades, labelled where there is room.
fn spans(svg: &mut Svg, top: f64, x: &Scale, data: &Timeline) {
    for (index, (start, end, label)) in merged(data).into_iter().enumerate() {
        let (from, to) = (x.at(start), x.at(end));
        let ink = if index % 2 == 0 { Ink::Main } else { Ink::Second };
        svg.rect(from, top, (to - from).max(0.6), 10.0, ink);
        if to - from > super::svg::width_of(label, 10.0) {
            let look = Text::new(10.0).anchor(Anchor::Middle).ink(Ink::Faint);
            svg.text(((from + to) / 2.0, top + 22.0), label, look);
        }
    }
}

/// Neighbours of the same kind (the first word: make, quality, trial) as one span.
fn merged(data: &Timeline) -> Vec<(f64, f64, &str)> {
    let mut list: Vec<(f64, f64, &str)> = Vec::new();
    for (start, end, label) in &data.spans {
        let kind = label.split(' ').next().unwrap_or_default();
        match list.last_mut() {
            Some(last) if last.2 == kind => last.1 = end.0,
            _ => list.push((start.0, end.0, kind)),
        }
    }
    list
}
