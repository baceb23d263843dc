//! What a terminal can show: how wide it is, and whether in colours.

use ptflow_exporters::call_tree::Paint;
use std::io::{self, IsTerminal as _};
use std::path::Path;

/// Columns where no terminal says how many it has.
const WIDTH: usize = 100;

/// Where an output goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terminal {
    /// Columns that a line may have.
    pub width: usize,
    /// It is one, or `COLUMNS` says how wide lines may be: longer ones are cut.
    pub is_narrow: bool,
    /// Colours: on a terminal, where `NO_COLOR` does not forbid them (no-color.org: set, and not empty).
    pub paint: Paint,
}

impl Terminal {
    /// Of an output; `-` is standard output.
    pub fn of(output: &Path) -> Self {
        let is_terminal = output.as_os_str() == "-" && io::stdout().is_terminal();
        let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let asked =
            || is_terminal.then(terminal_size::terminal_size).flatten().map(|(width, _)| width.0.into());
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            width: told.or_else(asked).unwrap_or(WIDTH).clamp(60, 400),
            is_narrow: is_terminal || told.is_some(),
            paint: Paint(is_terminal && !no_colour),
        }
    }
}
