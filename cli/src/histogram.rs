//! A histogram for the terminal.

use ptflow_decoder::jobs::invocations::Durations;
use ptflow_decoder::units::Ns;
use std::io::{self, Write};

/// Columns of the longest bar, where there is room.
const WIDTH: usize = 40;
/// At least, whatever the width.
const LEAST: usize = 10;

/// Bounds of rows between 1 and 10: about equal steps on a logarithmic scale (Renard's R10, rounded).
const FINE: [u64; 10] = [100, 120, 150, 200, 250, 300, 400, 500, 600, 800];
/// The same where durations lie far apart.
const COARSE: [u64; 3] = [100, 200, 500];

/// Writes a row for each stretch of durations, with its count and a bar. Several empty rows are one line of dots.
/// No line has more columns than `columns`, unless its figures have.
pub fn draw(
    out: &mut impl Write,
    durations: &Durations,
    columns: usize,
    text: impl Fn(Ns) -> String,
) -> io::Result<()> {
    let (Some(min), Some(max)) = (durations.permille(0), durations.permille(1000)) else { return Ok(()) };
    let rows = rows(durations, min, max);
    let most = rows.iter().map(|row| row.2).max().unwrap_or(0).max(1);
    let bounds: Vec<(String, String)> = rows.iter().map(|row| (text(row.0), text(row.1))).collect();
    let width =
        bounds.iter().map(|(from, to)| from.chars().count().max(to.chars().count())).max().unwrap_or(0);
    let digits = most.to_string().len();
    let longest = columns.saturating_sub(2 + width + 3 + width + 2 + digits + 1).clamp(LEAST, WIDTH);
    let mut at = 0;
    while at < rows.len() {
        let empty = rows[at..].iter().take_while(|row| row.2 == 0).count();
        if empty > 2 {
            writeln!(out, "  {:>width$}   …", "")?;
            at += empty;
            continue;
        }
        let (count, (from, to)) = (rows[at].2, &bounds[at]);
        let bar = bar(count, most, longest);
        let line = format!("  {from:>width$} - {to:>width$}  {count:>digits$} {bar}");
        writeln!(out, "{}", line.trim_end())?;
        at += 1;
    }
    Ok(())
}

/// From, to and count of each row; the first row holds the shortest duration, the last the longest.
fn rows(durations: &Durations, min: Ns, max: Ns) -> Vec<(Ns, Ns, u64)> {
    let steps: &[u64] = if max.0 / min.0.max(1) < 1000 { &FINE } else { &COARSE };
    let mut bounds = vec![0u64];
    let mut scale = 1u64;
    'all: loop {
        for step in steps {
            // Bounds are whole: below 10 some steps are none.
            let bound = u128::from(*step) * u128::from(scale) / 100;
            let bound = u64::try_from(bound).unwrap_or(u64::MAX);
            if bounds.last() != Some(&bound) {
                bounds.push(bound);
            }
            if bound > max.0 || bound == u64::MAX {
                break 'all;
            }
        }
        scale = scale.saturating_mul(10);
    }
    let first = bounds.partition_point(|bound| *bound <= min.0).saturating_sub(1);
    let pairs = bounds[first..].windows(2);
    pairs.map(|pair| (Ns(pair[0]), Ns(pair[1]), durations.between(Ns(pair[0]), Ns(pair[1])))).collect()
}

/// A bar in eighths of a column; never nothing for something.
fn bar(count: u64, most: u64, longest: usize) -> String {
    let eighths = (u128::from(count) * (longest as u128 * 8)).div_ceil(u128::from(most.max(1))) as u64;
    let part = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][(eighths % 8) as usize];
    "█".repeat((eighths / 8) as usize) + part
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(all: &[(u64, u64)]) -> String {
        let mut durations = Durations::default();
        for (ns, count) in all {
            (0..*count).for_each(|_| durations.add(Ns(*ns)));
        }
        let mut out = Vec::new();
        draw(&mut out, &durations, 100, |ns| ns.0.to_string()).expect("memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn rows_and_bars() {
        let expected = "  100 - 120  80 ████████████████████████████████████████
  120 - 150   1 ▌
        …
  500 - 600  40 ████████████████████
";
        assert_eq!(drawn(&[(100, 79), (119, 1), (120, 1), (599, 40)]), expected);
    }

    #[test]
    fn every_duration_is_in_a_row() {
        assert_eq!(drawn(&[]), "");
        for ends in [(0, 0), (0, 7), (1, u64::MAX - 1), (9, 11), (3, 2_999), (3, 3_000)] {
            let text = drawn(&[(ends.0, 1), (ends.1, 1)]);
            assert_eq!(text.matches('█').count() % 40, 0, "{text}");
            assert!(text.matches('█').count() >= 40, "{text}");
        }
    }
}
