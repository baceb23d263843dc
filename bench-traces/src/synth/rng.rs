//! Seeded chance: xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled").

/// A sequence that only its seed decides.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A sequence of its own for each pair.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mixed = (seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mut this = Self((mixed ^ mixed >> 29) | 1);
        this.next();
        this
    }

    /// 64 bits; the high ones are the better.
    #[inline]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// True in so many of 256 cases.
    #[inline]
    pub fn chance(&mut self, of_256: u16) -> bool {
        self.next() >> 56 < u64::from(of_256)
    }
}
