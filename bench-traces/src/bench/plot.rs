//! A plot as SVG: panels side by side, one line each, the same height scale in all: by powers of ten.

use std::fmt;
use std::ops::RangeInclusive;

/// One line.
pub struct Panel {
    /// What changes.
    pub title: &'static str,
    /// Where on the axis, how high, and what to write below.
    pub values: Vec<(f64, f64, String)>,
}

/// The panels, with what the height means.
pub fn plot<'p>(panels: &'p [Panel], height: &'p str) -> impl fmt::Display + use<'p> {
    Plot { panels, height }
}

struct Plot<'p> {
    panels: &'p [Panel],
    height: &'p str,
}

const WIDTH: f64 = 230.0;
const HEIGHT: f64 = 220.0;
const MARGIN: f64 = 36.0;
/// Room for the words below.
const BELOW: f64 = 110.0;

impl fmt::Display for Plot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heights =
            self.panels.iter().flat_map(|panel| &panel.values).map(|value| value.1.max(1e-9).log10());
        let (low, high) =
            heights.fold((f64::MAX, f64::MIN), |(low, high), log| (low.min(log), high.max(log)));
        let powers = low.floor() as i32..=high.ceil().max(low.floor() + 1.0) as i32;
        let (width, all) = (WIDTH + MARGIN, HEIGHT + 2.0 * MARGIN + BELOW);
        let total = width * self.panels.len() as f64 + MARGIN;
        writeln!(
            f,
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {all}" font-family="sans-serif" font-size="11">"#
        )?;
        writeln!(f, r#"<rect width="{total}" height="{all}" fill="white"/>"#)?;
        writeln!(f, r#"<text x="{MARGIN}" y="14">{}</text>"#, self.height)?;
        for (index, panel) in self.panels.iter().enumerate() {
            let left = MARGIN + width * index as f64;
            writeln!(f, r#"<g transform="translate({left} {MARGIN})">"#)?;
            panel.draw(f, &powers)?;
            writeln!(f, "</g>")?;
        }
        writeln!(f, "</svg>")
    }
}

impl Panel {
    fn draw(&self, f: &mut fmt::Formatter<'_>, powers: &RangeInclusive<i32>) -> fmt::Result {
        let (low, high) = (f64::from(*powers.start()), f64::from(*powers.end()));
        let y = |height: f64| HEIGHT * (high - height.max(1e-9).log10()) / (high - low);
        writeln!(f, r#"<text x="{}" y="-8" text-anchor="middle">{}</text>"#, WIDTH / 2.0, self.title)?;
        writeln!(f, r##"<path d="M0 0V{HEIGHT}H{WIDTH}" fill="none" stroke="#888"/>"##)?;
        for power in powers.clone().skip(1) {
            let height = 10f64.powi(power);
            let y = y(height);
            writeln!(
                f,
                r##"<path d="M0 {y:.1}H{WIDTH}" stroke="#ddd"/><text x="-4" y="{:.1}" text-anchor="end">{height}</text>"##,
                y + 4.0
            )?;
        }
        // What grows tenfold from point to point is shown by its logarithm.
        let logs: Vec<f64> = self.values.iter().map(|value| value.0.max(1e-9).log10()).collect();
        let (low, high) =
            logs.iter().fold((f64::MAX, f64::MIN), |(low, high), log| (low.min(*log), high.max(*log)));
        let at = |log: f64| 12.0 + (WIDTH - 24.0) * (log - low) / (high - low).max(1e-9);
        let points: Vec<(f64, f64)> =
            (logs.iter().zip(&self.values)).map(|(log, value)| (at(*log), y(value.1))).collect();
        let line: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        writeln!(
            f,
            r##"<polyline points="{}" fill="none" stroke="#2060a0" stroke-width="2"/>"##,
            line.join(" ")
        )?;
        for ((x, y), (_, height, name)) in points.iter().zip(&self.values) {
            writeln!(f, r##"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="#2060a0"/>"##)?;
            writeln!(f, r#"<text x="{x:.1}" y="{:.1}" text-anchor="middle">{height:.2}</text>"#, y - 7.0)?;
            let y = HEIGHT + 14.0;
            writeln!(
                f,
                r#"<text transform="translate({x:.1} {y:.1}) rotate(-40)" text-anchor="end">{name}</text>"#
            )?;
        }
        Ok(())
    }
}
