//! A timeline's counters: calls, instructions per cycle and the core's clock rate, over time, of each stack.

use ptflow_decoder::config::PtConfig;
use ptflow_exporters::budget::Budget;
use ptflow_exporters::rates::Rates;
use ptflow_exporters::timeline::Track;
use std::io;

/// What is counted of one stack.
#[derive(Default)]
pub struct Counters {
    /// Calls, instructions, core cycles.
    rates: Rates<3>,
    executed: Counted,
    cycles: Counted,
    /// Core:bus ratios, and since when.
    ratios: Vec<(u64, u8)>,
}

/// Something that is told as a sum.
#[derive(Clone, Copy, Default)]
struct Counted {
    told: Option<u64>,
    /// Up to here it is in the rates.
    taken: Option<u64>,
}

impl Counted {
    /// What came since it was asked for last; nothing the first time.
    fn take(&mut self) -> u64 {
        let taken = self.taken.or(self.told);
        self.taken = self.told;
        self.told.zip(taken).map_or(0, |(told, taken)| told.saturating_sub(taken))
    }
}

/// A core's clock rate may change often; so many changes are shown.
const MOST_RATIOS: usize = 1 << 16;

impl Counters {
    pub fn executed(&mut self, instructions: u64) {
        self.executed.told = Some(instructions);
    }

    pub fn cycles(&mut self, cycles: u64) {
        self.cycles.told = Some(cycles);
    }

    /// What is executed up to this time must be known: a step is over.
    #[inline]
    pub fn is_due(&self, ns: u64) -> bool {
        self.rates.is_over(ns)
    }

    /// A call. What was executed up to the first call of a step counts for the one before.
    #[inline]
    pub fn call(&mut self, ns: u64) {
        if self.is_due(ns) {
            self.take();
        }
        self.rates.add(ns, [1, 0, 0]);
    }

    fn take(&mut self) {
        let amounts = [0, self.executed.take(), self.cycles.take()];
        self.rates.add_to_last(amounts);
    }

    pub fn ratio(&mut self, ns: u64, ratio: u8) {
        if self.ratios.len() < MOST_RATIOS {
            self.ratios.push((ns, ratio));
        }
    }

    /// Draws what was counted below a track.
    pub fn write(mut self, timeline: &mut Budget, of: Track, config: &PtConfig) -> io::Result<()> {
        self.take();
        let us = self.rates.step() as f64 / 1e3;
        let calls = self.rates.steps().map(|(at, [calls, ..])| (at, calls as f64 / us));
        curve(timeline, of, "calls/us", calls)?;
        let is_told = self.rates.steps().any(|(_, [_, _, cycles])| cycles > 0);
        if is_told {
            let ipc = |(at, [_, executed, cycles]): (u64, [u64; 3])| {
                (at, if cycles == 0 { 0.0 } else { executed as f64 / cycles as f64 })
            };
            curve(timeline, of, "instructions per cycle", self.rates.steps().map(ipc))?;
        }
        if self.ratios.is_empty() {
            return Ok(());
        }
        // SDM vol. 3B, "Time-Stamp Counter": the TSC runs at the maximum non-turbo ratio of the bus clock.
        let bus = config.time.filter(|_| config.max_nonturbo_ratio > 0).map(|time| {
            let ticks_per_us = 1e3 * 2f64.powi(i32::from(time.shift)) / f64::from(time.mult);
            ticks_per_us / f64::from(config.max_nonturbo_ratio)
        });
        let name = if bus.is_some() { "core frequency (MHz)" } else { "core:bus ratio" };
        let frequency = |(at, ratio): &(u64, u8)| (*at, (f64::from(*ratio) * bus.unwrap_or(1.0)).round());
        curve(timeline, of, name, self.ratios.iter().map(frequency))
    }
}

/// Steps that are like the one before are not drawn.
fn curve(
    timeline: &mut Budget,
    of: Track,
    name: &str,
    steps: impl Iterator<Item = (u64, f64)>,
) -> io::Result<()> {
    let mut track = None;
    let mut before = None;
    for (at, value) in steps {
        let track = match track {
            Some(track) => track,
            None => *track.insert(timeline.counter(of, name)?),
        };
        if before != Some(value) {
            timeline.value(track, at, value)?;
            before = Some(value);
        }
    }
    Ok(())
}
