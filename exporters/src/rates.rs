//! How much of something happened when, in steps of time: what a counter's curve is drawn from.
//!
//! How long a trace is shows only at its end. So steps begin short, and whenever there are too many, two become one: memory
//! and the curve's size are bounded.

/// Sums of `N` things, side by side.
#[derive(Clone, Debug)]
pub struct Rates<const N: usize> {
    from: Option<u64>,
    /// A step is this power of two, in nanoseconds.
    shift: u32,
    /// The steps that are over; the one that is going on is apart.
    sums: Vec<[u64; N]>,
    going_on: [u64; N],
    /// When it ends.
    end: u64,
}

/// So many steps a curve has at most.
pub const MOST_STEPS: usize = 4096;
/// Steps begin at about a microsecond.
const FIRST_SHIFT: u32 = 10;

impl<const N: usize> Default for Rates<N> {
    fn default() -> Self {
        Self { from: None, shift: FIRST_SHIFT, sums: Vec::new(), going_on: [0; N], end: 0 }
    }
}

impl<const N: usize> Rates<N> {
    /// So much happened at `ns`. Times never fall: one that does counts for the step that is going on.
    #[inline]
    pub fn add(&mut self, ns: u64, amounts: [u64; N]) {
        if self.is_over(ns) {
            self.begin_step(ns);
        }
        add_to(&mut self.going_on, amounts);
    }

    /// What happens at `ns` is behind the step that is going on, or nothing happened yet.
    #[inline]
    pub fn is_over(&self, ns: u64) -> bool {
        ns >= self.end
    }

    /// So much more happened in the step that is going on; nowhere, if nothing happened yet.
    pub fn add_to_last(&mut self, amounts: [u64; N]) {
        if self.from.is_some() {
            add_to(&mut self.going_on, amounts);
        }
    }

    #[cold]
    fn begin_step(&mut self, ns: u64) {
        let Some(from) = self.from else {
            self.from = Some(ns);
            self.end = ns.saturating_add(1 << self.shift);
            return;
        };
        self.sums.push(std::mem::replace(&mut self.going_on, [0; N]));
        while (ns - from) >> self.shift >= MOST_STEPS as u64 {
            self.shift += 1;
            for index in 0..self.sums.len().div_ceil(2) {
                let mut sum = self.sums[2 * index];
                if let Some(second) = self.sums.get(2 * index + 1) {
                    add_to(&mut sum, *second);
                }
                self.sums[index] = sum;
            }
            self.sums.truncate(self.sums.len().div_ceil(2));
        }
        let index = (ns - from) >> self.shift;
        self.sums.resize(self.sums.len().max(index as usize), [0; N]);
        // Two steps that became one may be what is going on.
        self.going_on = self.sums.drain(index as usize..).next().unwrap_or([0; N]);
        self.end = from.saturating_add((index + 1).saturating_mul(1 << self.shift));
    }

    /// How long a step is, in nanoseconds.
    pub fn step(&self) -> u64 {
        1 << self.shift
    }

    /// The steps' beginnings and sums.
    pub fn steps(&self) -> impl Iterator<Item = (u64, [u64; N])> {
        let (from, shift) = (self.from.unwrap_or(0), self.shift);
        let going_on = self.from.map(|_| &self.going_on);
        let all = self.sums.iter().chain(going_on).enumerate();
        all.map(move |(index, sum)| (from.saturating_add((index as u64) << shift), *sum))
    }
}

fn add_to<const N: usize>(sum: &mut [u64; N], amounts: [u64; N]) {
    for (sum, amount) in sum.iter_mut().zip(amounts) {
        *sum = sum.saturating_add(amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_double_until_they_are_few() {
        let mut rates = Rates::<2>::default();
        rates.add_to_last([3, 3]);
        assert_eq!(rates.steps().next(), None);
        assert!(rates.is_over(0));
        rates.add(5_000, [1, 10]);
        rates.add(4_000, [1, 0]);
        rates.add(5_000 + 1023, [0, 0]);
        assert_eq!((rates.is_over(5_000 + 1023), rates.is_over(5_000 + 1024)), (false, true));
        rates.add_to_last([1, 0]);
        rates.add(5_000 + 1024, [0, 7]);
        assert_eq!(rates.steps().collect::<Vec<_>>(), [(5_000, [3, 10]), (6_024, [0, 7])]);
        // The last that fits, and the first that does not.
        rates.add(5_000 + 4095 * 1024, [2, 0]);
        assert_eq!((rates.step(), rates.steps().count()), (1024, 4096));
        rates.add(5_000 + 4096 * 1024, [1, 0]);
        assert_eq!((rates.step(), rates.steps().count()), (2048, 2049));
        let told: Vec<_> = rates.steps().filter(|(_, sums)| *sums != [0, 0]).collect();
        assert_eq!(told, [(5_000, [3, 17]), (5_000 + 2047 * 2048, [2, 0]), (5_000 + 2048 * 2048, [1, 0])]);
        // However far.
        rates.add(u64::MAX, [5, 0]);
        assert!(rates.steps().count() <= MOST_STEPS);
        assert_eq!(rates.steps().map(|(_, sums)| sums[0]).sum::<u64>(), 11);
    }
}
