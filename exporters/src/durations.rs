//! How long calls took, in bins: which of them a budget has room for.

/// Bins of an octave: a threshold is at most an eighth off.
const STEPS: u64 = 8;
/// So many bins there are.
pub const BINS: usize = 64 * STEPS as usize;

/// Counts of durations.
#[derive(Clone, Debug)]
pub struct Durations {
    counts: Vec<u64>,
}

impl Default for Durations {
    fn default() -> Self {
        Self { counts: vec![0; BINS] }
    }
}

impl Durations {
    /// A call of so many nanoseconds.
    pub fn add(&mut self, ns: u64) {
        self.counts[bin(ns)] += 1;
    }

    /// The least threshold that no more than so many calls reach.
    pub fn threshold(&self, most: u64) -> u64 {
        let mut reach_it = 0;
        let mut threshold = u64::MAX;
        for (bin, count) in self.counts.iter().enumerate().rev() {
            reach_it += count;
            if reach_it > most {
                break;
            }
            threshold = least(bin);
        }
        threshold
    }
}

/// The bin of a duration: exact below [`STEPS`], then eight to each power of two.
pub fn bin(ns: u64) -> usize {
    if ns < STEPS {
        return ns as usize;
    }
    let shift = ns.ilog2() - STEPS.ilog2();
    (u64::from(shift) * STEPS + (ns >> shift)) as usize
}

/// The least duration of a bin.
pub fn least(bin: usize) -> u64 {
    let bin = bin as u64;
    if bin < 2 * STEPS {
        return bin;
    }
    let shift = bin / STEPS - 1;
    // Bins behind the last that a duration falls into.
    (STEPS + bin % STEPS).checked_shl(shift as u32).filter(|least| least >> shift != 0).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bin_begins_where_the_one_before_ends() {
        assert_eq!((bin(0), bin(7), bin(8), bin(15), bin(16), bin(17), bin(18)), (0, 7, 8, 15, 16, 16, 17));
        for index in 1..=bin(u64::MAX) {
            assert_eq!(bin(least(index)), index);
            assert_eq!(bin(least(index) - 1), index - 1);
        }
        assert!(bin(u64::MAX) < BINS);
    }

    #[test]
    fn the_threshold_is_the_least_that_meets_the_budget() {
        let mut durations = Durations::default();
        for ns in [1, 5, 5, 100] {
            durations.add(ns);
        }
        assert_eq!([0, 1, 2, 3, 4].map(|most| durations.threshold(most)), [104, 6, 6, 2, 0]);
    }
}
