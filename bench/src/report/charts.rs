//! Charts, as SVG. Each takes plain labels and numbers; what they mean is said where they are used.

use std::fmt::Write as _;

use super::html::{number, text};

/// Width of all charts; they scale with the page.
const WIDTH: f64 = 960.0;
/// What is left of it for names.
const LEFT: f64 = 210.0;
/// And on the right for what stands behind the rows.
const RIGHT: f64 = 162.0;
/// Height of a row.
const ROW: f64 = 44.0;
/// Height of the axis below.
const AXIS: f64 = 34.0;

/// From values to places.
struct Scale {
    most: f64,
    /// The power of ten on the left, where the axis is logarithmic.
    least: Option<f64>,
}

impl Scale {
    fn linear(most: f64) -> Self {
        Self { most: if most > 0.0 { most } else { 1.0 }, least: None }
    }

    /// Logarithmic where the values lie too far apart to be seen on one line.
    fn fitting(least: f64, most: f64) -> Self {
        if least > 0.0 && most / least > 12.0 {
            let floor = 10_f64.powf(least.log10().floor());
            let steps = [1.0, 2.0, 5.0].into_iter().rev().map(|step| step * floor);
            let least = steps.into_iter().find(|step| *step <= least).unwrap_or(floor);
            Self { most: most * 1.05, least: Some(least) }
        } else {
            Self::linear(most)
        }
    }

    fn x(&self, value: f64) -> f64 {
        let share = match self.least {
            None => value / self.most,
            Some(least) => (value.max(least) / least).log10() / (self.most / least).log10(),
        };
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn ticks(&self) -> Vec<f64> {
        let Some(least) = self.least else {
            let step = step(self.most / 6.0);
            return (0..=20).map(|at| f64::from(at) * step).take_while(|tick| *tick <= self.most).collect();
        };
        let mut ticks = Vec::new();
        let mut decade = 10_f64.powf(least.log10().floor());
        while decade <= self.most {
            let within = |tick: &f64| *tick >= least * 0.999 && *tick <= self.most;
            ticks.extend([1.0, 2.0, 5.0].map(|step| step * decade).into_iter().filter(within));
            decade *= 10.0;
        }
        ticks
    }

    /// Lines and their numbers.
    fn axis(&self, svg: &mut String, bottom: f64, unit: &str) {
        for tick in self.ticks() {
            let x = self.x(tick);
            let _ = write!(
                svg,
                r#"<line class="grid" x1="{x:.1}" y1="0" x2="{x:.1}" y2="{bottom:.1}"/><text class="tick" x="{x:.1}" y="{:.1}">{}</text>"#,
                bottom + 20.0,
                text(round(tick)),
            );
        }
        let _ = write!(svg, r#"<text class="unit" x="{WIDTH}" y="{:.1}">{}</text>"#, bottom + 20.0, text(unit));
    }
}

/// A number on an axis, which is a round one.
fn round(value: f64) -> String {
    let text = number(value);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A round number of about this size.
fn step(about: f64) -> f64 {
    let decade = 10_f64.powf(about.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * decade).into_iter().find(|step| *step >= about).unwrap_or(about)
}

fn open(height: f64, label: &str) -> String {
    format!(r#"<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{}">"#, text(label))
}

fn name(svg: &mut String, y: f64, name: &str) {
    let _ =
        write!(svg, r#"<text class="name" x="{}" y="{:.1}">{}</text>"#, LEFT - 14.0, y + ROW / 2.0 + 5.0, text(name));
}

/// A chart of rows over one axis; `draw` adds what is in a row, which begins at this height.
fn rows<T>(
    (label, unit): (&str, &str),
    scale: &Scale,
    rows: &[T],
    name_of: impl Fn(&T) -> &str,
    draw: impl Fn(&mut String, f64, &T),
) -> String {
    let bottom = rows.len() as f64 * ROW + 6.0;
    let mut svg = open(bottom + AXIS, label);
    scale.axis(&mut svg, bottom, unit);
    for (at, row) in rows.iter().enumerate() {
        let y = at as f64 * ROW;
        name(&mut svg, y, name_of(row));
        draw(&mut svg, y, row);
    }
    svg.push_str("</svg>");
    svg
}

/// A row of coloured pieces.
pub struct Stack<'a> {
    /// What it is of.
    pub name: &'a str,
    /// The class of each piece's colour, what it is, and how long.
    pub pieces: Vec<(String, String, f64)>,
}

/// Rows of pieces that add up. Each has a scale of its own where they lie too far apart.
pub fn stacks(label: &str, unit: &str, all: &[Stack<'_>]) -> String {
    let total = |row: &Stack<'_>| row.pieces.iter().map(|piece| piece.2).sum::<f64>();
    let scale = Scale::linear(all.iter().map(total).fold(0.0, f64::max));
    rows(
        (label, unit),
        &scale,
        all,
        |row| row.name,
        |svg, y, row| {
            let mut begin = 0.0;
            for (class, what, length) in &row.pieces {
                let (from, to) = (scale.x(begin), scale.x(begin + length));
                let (width, top, height) = ((to - from).max(0.4), y + 9.0, ROW - 18.0);
                let _ = write!(
                    svg,
                    r#"<rect class="{class}" x="{from:.2}" y="{top:.1}" width="{width:.2}" height="{height:.1}"><title>{}: {} {}</title></rect>"#,
                    text(what),
                    text(number(*length)),
                    text(unit),
                );
                begin += length;
            }
            let (x, y) = (scale.x(begin) + 10.0, y + ROW / 2.0 + 5.0);
            let _ = write!(svg, r#"<text class="value" x="{x:.1}" y="{y:.1}">{}</text>"#, text(number(begin)));
        },
    )
}

/// A row of single values.
pub struct Strip<'a> {
    /// What they are of.
    pub name: &'a str,
    /// The class of their colour.
    pub class: &'a str,
    /// The values.
    pub values: Vec<f64>,
    /// The quartiles.
    pub quartiles: [f64; 3],
}

/// Rows of dots, one for each value, over a box from the first to the third quartile with a line at the median.
pub fn strips(label: &str, unit: &str, all: &[Strip<'_>]) -> String {
    let values = || all.iter().flat_map(|row| row.values.iter().copied());
    let scale = Scale::fitting(values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    rows(
        (label, unit),
        &scale,
        all,
        |row| row.name,
        |svg, y, row| {
            let class = row.class;
            let [q1, median, q3] = row.quartiles.map(|value| scale.x(value));
            let (top, height, width) = (y + 9.0, ROW - 18.0, (q3 - q1).max(1.5));
            let _ = write!(
                svg,
                r#"<rect class="box {class}" x="{q1:.1}" y="{top:.1}" width="{width:.1}" height="{height:.1}" rx="3"/>"#
            );
            for (number, value) in row.values.iter().enumerate() {
                // The same for each report: dots that lie over each other are pulled apart by their number.
                let pulled = ((number * 7) % 11) as f64 / 10.0 - 0.5;
                let (x, y) = (scale.x(*value), y + ROW / 2.0 + pulled * 16.0);
                let _ = write!(svg, r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="2.6"/>"#);
            }
            let (from, to) = (y + 6.0, y + ROW - 6.0);
            let _ =
                write!(svg, r#"<line class="median" x1="{median:.1}" y1="{from:.1}" x2="{median:.1}" y2="{to:.1}"/>"#);
            let (x, y) = (WIDTH - RIGHT + 14.0, y + ROW / 2.0 + 5.0);
            let _ =
                write!(svg, r#"<text class="value" x="{x:.1}" y="{y:.1}">{}</text>"#, text(number(row.quartiles[1])));
        },
    )
}

/// A row with one value.
pub struct Bar<'a> {
    /// What it is of.
    pub name: &'a str,
    /// The class of its colour.
    pub class: &'a str,
    /// The value.
    pub value: f64,
    /// What stands behind it.
    pub says: String,
}

/// Rows with one value each.
pub fn bars(label: &str, unit: &str, all: &[Bar<'_>]) -> String {
    let scale = Scale::linear(all.iter().map(|row| row.value).fold(0.0, f64::max));
    rows(
        (label, unit),
        &scale,
        all,
        |row| row.name,
        |svg, y, row| {
            let end = scale.x(row.value);
            let (width, top, height) = ((end - LEFT).max(1.0), y + 9.0, ROW - 18.0);
            let _ = write!(
                svg,
                r#"<rect class="{}" x="{LEFT}" y="{top:.1}" width="{width:.1}" height="{height:.1}" rx="2"/><text class="value" x="{:.1}" y="{:.1}">{}</text>"#,
                row.class,
                end + 10.0,
                y + ROW / 2.0 + 5.0,
                text(&row.says),
            );
        },
    )
}

/// A line through points, from the origin.
pub struct Line<'a> {
    /// What it is of.
    pub name: &'a str,
    /// The class of its colour.
    pub class: &'a str,
    /// The value after each step.
    pub values: Vec<f64>,
}

/// Lines over the number of steps, up to a limit.
pub fn lines(label: &str, unit: &str, steps: &str, limit: f64, rows: &[Line<'_>]) -> String {
    const HEIGHT: f64 = 350.0;
    const TOP: f64 = 28.0;
    const LEFT: f64 = 74.0;
    let count = rows.iter().map(|row| row.values.len()).max().unwrap_or_default().max(1) as f64;
    let highest = rows.iter().flat_map(|row| row.values.iter().copied()).fold(0.0, f64::max);
    let most = if highest > limit / 2.0 { limit * 1.06 } else { highest * 1.15 };
    let most = if most > 0.0 { most } else { 1.0 };
    let x = |at: f64| LEFT + at / count * (WIDTH - LEFT - 230.0);
    let y = |value: f64| HEIGHT - value / most * (HEIGHT - TOP);
    let mut svg = open(HEIGHT + AXIS + 8.0, label);
    let vertical = step(most / 5.0);
    for tick in (0..).map(|at| f64::from(at) * vertical).take_while(|tick| *tick <= most) {
        let (from, to, y) = (LEFT, x(count), y(tick));
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{from}" y1="{y:.1}" x2="{to:.1}" y2="{y:.1}"/><text class="name" x="{:.1}" y="{:.1}">{}</text>"#,
            from - 12.0,
            y + 5.0,
            text(round(tick)),
        );
    }
    let horizontal = step(count / 8.0).max(1.0).ceil();
    for tick in (0..).map(|at| f64::from(at) * horizontal).take_while(|tick| *tick <= count) {
        let _ = write!(svg, r#"<text class="tick" x="{:.1}" y="{:.1}">{tick}</text>"#, x(tick), HEIGHT + 20.0);
    }
    let _ = write!(
        svg,
        r#"<text class="unit" x="{:.1}" y="{:.1}">{}</text><text class="tick" x="{:.1}" y="{:.1}">{}</text>"#,
        LEFT - 12.0,
        12.0,
        text(unit),
        x(count / 2.0),
        HEIGHT + 38.0,
        text(steps),
    );
    if most > limit {
        let (from, to, at) = (LEFT, x(count), y(limit));
        let _ = write!(
            svg,
            r#"<line class="limit" x1="{from}" y1="{at:.1}" x2="{to:.1}" y2="{at:.1}"/><text class="value" x="{:.1}" y="{:.1}">budget</text>"#,
            to + 10.0,
            at + 5.0,
        );
    }
    let mut ends: Vec<(f64, usize)> = Vec::new();
    for (at, row) in rows.iter().enumerate() {
        let mut path = format!("M{:.1},{:.1}", x(0.0), y(0.0));
        for (number, value) in (1..).zip(&row.values) {
            let _ = write!(path, " L{:.1},{:.1}", x(f64::from(number)), y(*value));
        }
        let _ = write!(svg, r#"<path class="line {}" d="{path}"/>"#, row.class);
        ends.push((y(row.values.last().copied().unwrap_or_default()), at));
    }
    // Names beside the ends of their lines, pushed apart where those meet.
    ends.sort_by(|one, other| other.0.total_cmp(&one.0));
    let mut lowest = f64::INFINITY;
    for (end, at) in ends {
        let place = end.min(lowest - 19.0);
        lowest = place;
        let row = &rows[at];
        let _ = write!(
            svg,
            r#"<circle class="{}" cx="{:.1}" cy="{:.1}" r="5"/><text class="value" x="{:.1}" y="{:.1}">{}</text>"#,
            row.class,
            x(count) + 15.0,
            place,
            x(count) + 27.0,
            place + 5.0,
            text(row.name),
        );
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_numbers_within_reach() {
        assert_eq!(Scale::linear(25.0).ticks(), [0.0, 5.0, 10.0, 15.0, 20.0, 25.0]);
        let far = Scale::fitting(3.0, 170.0);
        assert_eq!(far.ticks(), [2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert!(far.x(2.0) < far.x(3.0) && far.x(170.0) <= WIDTH - RIGHT);
        assert_eq!(Scale::linear(0.0).ticks().first(), Some(&0.0));
    }

    #[test]
    fn names_are_text() {
        let evil = Bar { name: "<script>", class: "c", value: 1.0, says: "\"".to_owned() };
        let svg = bars("a \"label\"", "<ms>", &[evil]);
        assert!(!svg.contains("<script>") && !svg.contains("<ms>") && svg.contains("&lt;script&gt;"), "{svg}");
    }

    #[test]
    fn nothing_to_draw_is_a_chart_too() {
        for svg in [stacks("", "", &[]), strips("", "", &[]), bars("", "", &[]), lines("", "", "", 1.0, &[])] {
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>") && !svg.contains("NaN"), "{svg}");
        }
    }
}
