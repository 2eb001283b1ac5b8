use super::{
    frame::{Area, HEAD, WIDTH, axes, header, note},
    scale::Scale,
    svg::{Anchor, Ink, Svg, Text, width_of},
};

/// One configuration in a plane.
pub(crate) struct Dot {
    pub(crate) label: String,
    pub(crate) ink: Ink,
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// Ends of the interval of y, and of x.
    pub(crate) y_ends: Option<(f64, f64)>,
    pub(crate) x_ends: Option<(f64, f64)>,
    pub(crate) frontier: bool,
}

/// A trade-off with its Pareto frontier.
pub(crate) struct Scatter<'a> {
    pub(crate) title: &'a str,
    pub(crate) subtitle: &'a str,
    pub(crate) x: Axis<'a>,
    pub(crate) y: Axis<'a>,
    pub(crate) dots: Vec<Dot>,
    /// A horizontal line, with its label.
    pub(crate) floor: Option<(f64, String)>,
}

pub(crate) struct Axis<'a> {
    pub(crate) label: &'a str,
    pub(crate) log: bool,
    pub(crate) tick: fn(f64) -> String,
}

const HEIGHT: f64 = 460.0;
const SIZE: f64 = 11.5;
/// Room around a label, so that it covers no letters of its neighbours.
const HALO: f64 = 2.0;
const AREA: Area = Area { left: 78.0, right: WIDTH - 24.0, top: HEAD, bottom: HEIGHT - 48.0 };

/// Draws the chart.
pub(crate) fn scatter(chart: &Scatter<'_>) -> String {
    let mut svg = Svg::new(WIDTH, HEIGHT, chart.title);
    header(&mut svg, chart.title, chart.subtitle);
    let xs = chart.dots.iter().flat_map(|d| spread(d.x, d.x_ends));
    let ys = chart.dots.iter().flat_map(|d| spread(d.y, d.y_ends));
    let ys = ys.chain(chart.floor.iter().map(|(y, _)| *y));
    let x = scale(xs, chart.x.log).onto(AREA.left, AREA.right);
    let y = scale(ys, chart.y.log).onto(AREA.bottom, AREA.top);
    axes(&mut svg, &AREA, (&x, chart.x.label, chart.x.tick), (&y, chart.y.label, chart.y.tick));
    if let Some((value, label)) = &chart.floor {
        let at = y.at(*value);
        svg.dashed((AREA.left, at), (AREA.right, at), Ink::Alarm);
        let left = AREA.left + width_of(label, 11.0) / 2.0;
        note(&mut svg, (left, at + 14.0), label, (AREA.left, AREA.right));
    }
    frontier(&mut svg, &chart.dots, &x, &y);
    for dot in &chart.dots {
        draw(&mut svg, dot, &x, &y);
    }
    labels(&mut svg, &chart.dots, &x, &y);
    svg.finish()
}

fn spread(point: f64, ends: Option<(f64, f64)>) -> Vec<f64> {
    let ends = ends.into_iter().flat_map(|(low, high)| [low, high]);
    std::iter::once(point).chain(ends.filter(|e| *e > 0.0 && *e < 1e300)).collect()
}

fn scale(values: impl Iterator<Item = f64>, log: bool) -> Scale {
    if log { Scale::log(values) } else { Scale::near(values) }
}

fn draw(svg: &mut Svg, dot: &Dot, x: &Scale, y: &Scale) {
    let at = (x.at(dot.x), y.at(dot.y));
    if let Some((low, high)) = dot.y_ends {
        svg.whisker((at.0, y.at(low)), (at.0, y.at(high)), dot.ink);
    }
    if let Some((low, high)) = dot.x_ends {
        svg.whisker((x.at(low), at.1), (x.at(high), at.1), dot.ink);
    }
    match dot.ink {
        Ink::Pick => svg.diamond(at, 8.0, dot.ink),
        Ink::Base => svg.ring(at, 6.0, dot.ink),
        ink => svg.dot(at, 5.5, ink),
    }
}

/// The line through what nothing beats.
fn frontier(svg: &mut Svg, dots: &[Dot], x: &Scale, y: &Scale) {
    let mut points: Vec<(f64, f64)> =
        dots.iter().filter(|d| d.frontier).map(|d| (x.at(d.x), y.at(d.y))).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    if points.len() > 1 {
        svg.path(&points, Ink::Second, 2.5);
    }
}

/// Boxes (left, top, right, bottom).
type Place = (f64, f64, f64, f64);

/// Puts each label at the first free place around its dot, nearest first; draws a thin line to a
/// label that had to go further away.
fn labels(svg: &mut Svg, dots: &[Dot], x: &Scale, y: &Scale) {
    let mut taken: Vec<Place> = dots
        .iter()
        .map(|d| (x.at(d.x) - 7.0, y.at(d.y) - 7.0, x.at(d.x) + 7.0, y.at(d.y) + 7.0))
        .collect();
    let whiskers: Vec<Place> = dots.iter().flat_map(|dot| whiskers(dot, x, y)).collect();
    let mut order: Vec<&Dot> = dots.iter().collect();
    // What matters most chooses first.
    order.sort_by_key(|d| (d.ink != Ink::Pick, d.ink != Ink::Base, !d.frontier));
    for dot in order {
        let at = (x.at(dot.x), y.at(dot.y));
        // Bold letters are about a tenth wider.
        let width = width_of(&dot.label, SIZE) * if dot.ink == Ink::Pick { 1.12 } else { 1.0 };
        let width = width + 2.0 * HALO;
        let candidates = places(at, width);
        let free = |place: &&Place| inside(place) && !taken.iter().any(|t| overlap(t, place));
        let clear = |place: &&Place| free(place) && !whiskers.iter().any(|w| overlap(w, place));
        let near = &candidates[..candidates.len() / 2];
        let best = near.iter().find(clear).or_else(|| candidates.iter().find(free));
        let Some(place) = best.or(candidates.first()).copied() else { continue };
        taken.push(place);
        let middle = ((place.0 + place.2) / 2.0, (place.1 + place.3) / 2.0);
        let (dx, dy) = ((middle.0 - at.0).abs() - width / 2.0, (middle.1 - at.1).abs() - 7.0);
        if dx > 14.0 || dy > 14.0 {
            let end = (at.0.clamp(place.0, place.2), at.1.clamp(place.1, place.3));
            svg.line(at, end, Ink::Faint, 0.8);
        }
        let look = Text::new(SIZE).anchor(Anchor::Start).ink(dot.ink).halo();
        let look = if dot.ink == Ink::Pick { look.bold() } else { look };
        svg.text((place.0 + HALO, place.3 - 3.0), &dot.label, look);
    }
}

/// Where a dot's intervals are.
fn whiskers(dot: &Dot, x: &Scale, y: &Scale) -> Vec<Place> {
    let at = (x.at(dot.x), y.at(dot.y));
    let upright = dot.y_ends.map(|(low, high)| (at.0 - 1.0, y.at(high), at.0 + 1.0, y.at(low)));
    let level = dot.x_ends.map(|(low, high)| (x.at(low), at.1 - 1.0, x.at(high), at.1 + 1.0));
    upright.into_iter().chain(level).collect()
}

/// Places for a label: right, left, above, below, then the same further away.
fn places(at: (f64, f64), width: f64) -> Vec<Place> {
    const TALL: f64 = 14.0;
    let mut list = Vec::new();
    for far in [0.0, 14.0, 28.0, 44.0, 62.0] {
        let gap = 10.0 + far;
        for (dx, dy) in [
            (gap, -TALL / 2.0),
            (-gap - width, -TALL / 2.0),
            (-width / 2.0, -gap - TALL),
            (-width / 2.0, gap),
            (gap * 0.8, -gap - TALL * 0.6),
            (gap * 0.8, gap * 0.8),
            (-gap * 0.8 - width, -gap - TALL * 0.6),
            (-gap * 0.8 - width, gap * 0.8),
        ] {
            let (left, top) = (at.0 + dx, at.1 + dy);
            list.push((left, top, left + width, top + TALL));
        }
    }
    list
}

fn inside(place: &Place) -> bool {
    place.0 >= AREA.left
        && place.2 <= WIDTH - 8.0
        && place.1 >= AREA.top - 8.0
        && place.3 <= AREA.bottom
}

fn overlap(a: &Place, b: &Place) -> bool {
    a.0 < b.2 && b.0 < a.2 && a.1 < b.3 && b.1 < a.3
}
