use std::fmt::Write;

/// Width of an average character of DejaVu Sans in ems, and of the widest usual ones: enough to
/// lay labels out without reading the font.
const EM: f64 = 0.60;

/// Builds an SVG document.
///
/// Colours are written as attributes for a light page, each with a class, so that the HTML report's
/// style sheet can restyle the same picture for a dark page or for print.
pub(crate) struct Svg {
    body: String,
    width: f64,
    height: f64,
    title: String,
}

/// What a colour is used for. Every role differs from the others in lightness as well as in hue,
/// so that the charts read without colour vision and in grey print (after Okabe and Ito).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ink {
    Text,
    Faint,
    Grid,
    /// Configurations.
    Main,
    /// The recommended configuration.
    Pick,
    /// The unquantized model.
    Base,
    /// A second series, such as size beside memory.
    Second,
    /// Others' load, limits that were missed.
    Alarm,
    Page,
    /// One of many configurations that must be told apart: any number, see [`SERIES`].
    Series(usize),
}

/// Classes of [`Ink::Series`] and their colours on a light page.
const SERIES: [(&str, &str); 6] = [
    ("one", "#0072b2"),
    ("two", "#00795a"),
    ("three", "#b0568c"),
    ("four", "#3d93c4"),
    ("five", "#7a5bb0"),
    ("six", "#8a6a1c"),
];

/// Dashes of [`Ink::Series`], once all colours have been used: the first is a whole line.
const DASHES: [&str; 4] = ["", "7 3", "2 3", "9 3 2 3"];

impl Ink {
    fn dash(self) -> &'static str {
        match self {
            Self::Series(n) => DASHES[n / SERIES.len() % DASHES.len()],
            _ => "",
        }
    }

    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Text => "ink",
            Self::Faint => "faint",
            Self::Grid => "grid",
            Self::Main => "main",
            Self::Pick => "pick",
            Self::Base => "base",
            Self::Second => "second",
            Self::Alarm => "alarm",
            Self::Page => "page",
            Self::Series(n) => SERIES[n % SERIES.len()].0,
        }
    }

    pub(crate) fn light(self) -> &'static str {
        match self {
            Self::Text => "#1b1f24",
            Self::Faint => "#59636e",
            Self::Grid => "#d8dee4",
            Self::Main => "#0072b2",
            Self::Pick => "#d55e00",
            Self::Base => "#3d444d",
            Self::Second => "#8ecae6",
            Self::Alarm => "#a3123f",
            Self::Page => "#ffffff",
            Self::Series(n) => SERIES[n % SERIES.len()].1,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    pub(crate) fn new(width: f64, height: f64, title: &str) -> Self {
        Self { body: String::new(), width, height, title: title.to_owned() }
    }

    pub(crate) fn rect(&mut self, x: f64, y: f64, w: f64, h: f64, ink: Ink) {
        let (w, h) = (w.max(0.0), h.max(0.0));
        let paint = fill(ink);
        let _ = writeln!(
            self.body,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}" {paint}/>"#
        );
    }

    pub(crate) fn line(&mut self, from: (f64, f64), to: (f64, f64), ink: Ink, width: f64) {
        if is_short(&[from, to]) {
            return;
        }
        let paint = stroke(ink, width);
        let _ = writeln!(
            self.body,
            r#"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" {paint}/>"#,
            from.0, from.1, to.0, to.1
        );
    }

    /// An interval: half transparent, so that a label over it can be read.
    pub(crate) fn whisker(&mut self, from: (f64, f64), to: (f64, f64), ink: Ink) {
        if is_short(&[from, to]) {
            return;
        }
        let paint = stroke(ink, 1.4);
        let _ = writeln!(
            self.body,
            r#"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" {paint} stroke-opacity="0.5"/>"#,
            from.0, from.1, to.0, to.1
        );
    }

    pub(crate) fn dashed(&mut self, from: (f64, f64), to: (f64, f64), ink: Ink) {
        let paint = stroke(ink, 1.5);
        let _ = writeln!(
            self.body,
            r#"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" {paint} stroke-dasharray="5 4"/>"#,
            from.0, from.1, to.0, to.1
        );
    }

    pub(crate) fn path(&mut self, points: &[(f64, f64)], ink: Ink, width: f64) {
        if is_short(points) {
            return;
        }
        let paint = stroke(ink, width);
        let dash = match ink.dash() {
            "" => String::new(),
            dash => format!(r#" stroke-dasharray="{dash}""#),
        };
        let _ = writeln!(
            self.body,
            r#"<polyline points="{}" {paint}{dash} style="fill:none"/>"#,
            coordinates(points)
        );
    }

    /// A filled shape, half transparent.
    pub(crate) fn area(&mut self, points: &[(f64, f64)], ink: Ink) {
        let paint = fill(ink);
        let _ = writeln!(
            self.body,
            r#"<polygon points="{}" {paint} fill-opacity="0.45"/>"#,
            coordinates(points)
        );
    }

    pub(crate) fn dot(&mut self, at: (f64, f64), radius: f64, ink: Ink) {
        let paint = fill(ink);
        let _ = writeln!(
            self.body,
            r#"<circle cx="{:.1}" cy="{:.1}" r="{radius:.1}" {paint}/>"#,
            at.0, at.1
        );
    }

    /// A dot that is not filled.
    pub(crate) fn ring(&mut self, at: (f64, f64), radius: f64, ink: Ink) {
        let paint = stroke(ink, 1.8);
        let _ = writeln!(
            self.body,
            r#"<circle cx="{:.1}" cy="{:.1}" r="{radius:.1}" {paint} style="fill:none"/>"#,
            at.0, at.1
        );
    }

    /// A square that stands on its corner.
    pub(crate) fn diamond(&mut self, at: (f64, f64), radius: f64, ink: Ink) {
        let (x, y) = at;
        let points = [(x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)];
        let paint = fill(ink);
        let _ = writeln!(self.body, r#"<polygon points="{}" {paint}/>"#, coordinates(&points));
    }

    pub(crate) fn text(&mut self, at: (f64, f64), text: &str, look: Text) {
        let anchor = match look.anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let weight = if look.bold { r#" font-weight="bold""# } else { "" };
        let turn = if look.upright {
            format!(r#" transform="rotate(-90 {:.1} {:.1})""#, at.0, at.1)
        } else {
            String::new()
        };
        let paint = fill(look.ink);
        if look.halo {
            let page = stroke(Ink::Page, 3.5);
            let _ = writeln!(
                self.body,
                r#"<text x="{:.1}" y="{:.1}" font-size="{}" text-anchor="{anchor}"{weight}{turn} aria-hidden="true" {page} stroke-opacity="0.85">{}</text>"#,
                at.0,
                at.1,
                look.size,
                escape(text)
            );
        }
        let _ = writeln!(
            self.body,
            r#"<text x="{:.1}" y="{:.1}" font-size="{}" text-anchor="{anchor}"{weight}{turn} {paint}>{}</text>"#,
            at.0,
            at.1,
            look.size,
            escape(text)
        );
    }

    pub(crate) fn finish(self) -> String {
        let (w, h) = (self.width, self.height);
        let title = escape(&self.title);
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-label="{title}" font-family="'DejaVu Sans', Verdana, sans-serif">
<title>{title}</title>
<rect width="{w}" height="{h}" {page}/>
{body}</svg>
"#,
            page = fill(Ink::Page),
            body = self.body
        )
    }
}

/// How a text is set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text {
    pub(crate) size: f64,
    pub(crate) anchor: Anchor,
    pub(crate) ink: Ink,
    pub(crate) bold: bool,
    /// Reads from bottom to top.
    pub(crate) upright: bool,
    /// Keeps what lies under it at a distance.
    pub(crate) halo: bool,
}

impl Text {
    pub(crate) const fn new(size: f64) -> Self {
        Self {
            size,
            anchor: Anchor::Start,
            ink: Ink::Text,
            bold: false,
            upright: false,
            halo: false,
        }
    }

    pub(crate) const fn ink(self, ink: Ink) -> Self {
        Self { ink, ..self }
    }

    pub(crate) const fn anchor(self, anchor: Anchor) -> Self {
        Self { anchor, ..self }
    }

    pub(crate) const fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    pub(crate) const fn halo(self) -> Self {
        Self { halo: true, ..self }
    }

    pub(crate) const fn upright(self) -> Self {
        Self { upright: true, ..self }
    }
}

/// Whether a line would be all in one place: nothing to see, and nothing that can be stroked.
fn is_short(points: &[(f64, f64)]) -> bool {
    points.windows(2).all(|p| (p[0].0 - p[1].0).abs() < 0.1 && (p[0].1 - p[1].1).abs() < 0.1)
}

/// About how wide a text is when set.
pub(crate) fn width_of(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * EM * size
}

fn fill(ink: Ink) -> String {
    format!(r#"fill="{}" class="f-{}""#, ink.light(), ink.class())
}

fn stroke(ink: Ink, width: f64) -> String {
    format!(
        r#"stroke="{}" stroke-width="{width}" fill="none" stroke-linejoin="round" class="s-{}""#,
        ink.light(),
        ink.class()
    )
}

fn coordinates(points: &[(f64, f64)]) -> String {
    points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
}

/// Makes text safe inside XML and HTML, attributes included.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // XML 1.0 has no way to write these.
            c if c.is_control() && !matches!(c, '\n' | '\t') => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_text() {
        assert_eq!(
            escape("<script>alert(\"1\" & '2')</script>\u{0}"),
            "&lt;script&gt;alert(&quot;1&quot; &amp; &#39;2&#39;)&lt;/script&gt;\u{fffd}"
        );
    }
}
