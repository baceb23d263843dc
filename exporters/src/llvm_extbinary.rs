//! `profile --format llvm-extbinary`: a sample profile in LLVM's extensible binary format, which compilers load faster than
//! text: each function by itself.
//!
//! ```text
//! magic, version (ULEB128) | sections: how many, then type, flags, offset, size of each (u64) | the sections
//! ```
//!
//! (LLVM's `llvm/include/llvm/ProfileData/SampleProf.h` and `llvm/lib/ProfileData/SampleProfWriter.cpp`,
//! `SampleProfileWriterExtBinary`.)

use crate::llvm_text::in_order;
use crate::sample_profile::{FunctionSamples, Place, SampleProfile};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// "SPROF42" and the number of the format.
const MAGIC: u64 = u64::from_be_bytes(*b"SPROF42\x04");
const VERSION: u64 = 103;

/// Types of sections, in the order in which a reader wants them.
mod section {
    pub const SUMMARY: u64 = 1;
    pub const NAMES: u64 = 2;
    pub const FUNCTION_OFFSETS: u64 = 4;
    pub const CHECKSUMS: u64 = 5;
    pub const PROFILES: u64 = 32;
}

/// Writes a profile.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut impl Write, profile: &SampleProfile<'_>) -> io::Result<()> {
    let names = Names::of(profile);
    let mut profiles = Vec::new();
    let mut offsets = Vec::new();
    uleb(&mut offsets, profile.functions.len() as u64);
    for (name, samples) in in_order(profile) {
        uleb(&mut offsets, names.index(name));
        uleb(&mut offsets, profiles.len() as u64);
        uleb(&mut profiles, samples.head);
        push_samples(&mut profiles, name, samples, &names);
    }
    let mut sections = vec![
        (section::SUMMARY, 0, Summary::of(profile).bytes()),
        (section::NAMES, names.flags(), names.bytes()),
        (section::FUNCTION_OFFSETS, 0, offsets),
        (section::PROFILES, 0, profiles),
    ];
    if profile.is_of_probes() {
        const OF_PROBES: u64 = 1 << 32;
        let mut checksums = Vec::new();
        for (name, samples) in in_order(profile) {
            push_checksums(&mut checksums, name, samples, &names);
        }
        sections.push((section::CHECKSUMS, OF_PROBES, checksums));
    }
    let mut head = Vec::new();
    uleb(&mut head, MAGIC);
    uleb(&mut head, VERSION);
    head.extend((sections.len() as u64).to_le_bytes());
    const HEADER: usize = 4 * size_of::<u64>();
    let mut offset = (head.len() + sections.len() * HEADER) as u64;
    for (kind, flags, bytes) in &sections {
        let len = bytes.len() as u64;
        [*kind, *flags, offset, len].into_iter().for_each(|word| head.extend(word.to_le_bytes()));
        offset += len;
    }
    out.write_all(&head)?;
    sections.iter().try_for_each(|(.., bytes)| out.write_all(bytes))
}

/// A function's checksum, and those of all that was inlined in it.
fn push_checksums(out: &mut Vec<u8>, name: &str, samples: &FunctionSamples<'_>, names: &Names<'_>) {
    uleb(out, names.index(name));
    uleb(out, samples.checksum.unwrap_or(0));
    uleb(out, samples.inlined.values().map(|inlined| inlined.len() as u64).sum());
    for (place, inlined) in &samples.inlined {
        for (name, samples) in inlined {
            push_place(out, place);
            push_checksums(out, name, samples, names);
        }
    }
}

fn push_place(out: &mut Vec<u8>, place: &Place) {
    uleb(out, place.line.into());
    uleb(out, place.discriminator.into());
}

fn push_samples(out: &mut Vec<u8>, name: &str, samples: &FunctionSamples<'_>, names: &Names<'_>) {
    uleb(out, names.index(name));
    uleb(out, samples.total);
    uleb(out, samples.body.len() as u64);
    for (place, body) in &samples.body {
        push_place(out, place);
        uleb(out, body.count);
        uleb(out, body.calls.len() as u64);
        for (called, count) in &body.calls {
            uleb(out, names.index(called));
            uleb(out, *count);
        }
    }
    uleb(out, samples.inlined.values().map(|inlined| inlined.len() as u64).sum());
    for (place, inlined) in &samples.inlined {
        for (name, samples) in inlined {
            push_place(out, place);
            push_samples(out, name, samples, names);
        }
    }
}

/// All names, sorted: elsewhere each is its number.
struct Names<'n>(BTreeMap<&'n str, u64>);

impl<'n> Names<'n> {
    fn of(profile: &SampleProfile<'n>) -> Self {
        let mut names = BTreeMap::new();
        gather(&mut names, &profile.functions);
        for (index, number) in names.values_mut().enumerate() {
            *number = index as u64;
        }
        Self(names)
    }

    fn index(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// The compiler drops `.__uniq.N` (`-funique-internal-linkage-names`) from its own names unless it is told that the
    /// profile has it: then no static function finds its profile.
    fn flags(&self) -> u64 {
        const UNIQUE_SUFFIX: u64 = 1 << 2 << 32;
        if self.0.keys().any(|name| name.contains(".__uniq.")) { UNIQUE_SUFFIX } else { 0 }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        uleb(&mut out, self.0.len() as u64);
        for name in self.0.keys() {
            out.extend_from_slice(name.as_bytes());
            out.push(0);
        }
        out
    }
}

fn gather<'n>(names: &mut BTreeMap<&'n str, u64>, functions: &BTreeMap<&'n str, FunctionSamples<'n>>) {
    for (name, samples) in functions {
        names.insert(name, 0);
        names.extend(samples.body.values().flat_map(|body| body.calls.keys().map(|name| (*name, 0))));
        samples.inlined.values().for_each(|inlined| gather(names, inlined));
    }
}

/// What the compiler takes "hot" by: how high a count must be to be among those that make up so much of all.
#[derive(Default)]
struct Summary {
    total: u64,
    max: u64,
    max_head: u64,
    counts: u64,
    functions: u64,
    /// How many lines have a count.
    frequencies: BTreeMap<u64, u64>,
}

/// Shares of the total, in millionths (LLVM's `ProfileSummaryBuilder::DefaultCutoffs`).
const CUTOFFS: [u64; 16] = [
    10_000, 100_000, 200_000, 300_000, 400_000, 500_000, 600_000, 700_000, 800_000, 900_000, 950_000,
    990_000, 999_000, 999_900, 999_990, 999_999,
];

impl Summary {
    fn of(profile: &SampleProfile<'_>) -> Self {
        let mut this = Self::default();
        for samples in profile.functions.values() {
            this.functions += 1;
            this.max_head = this.max_head.max(samples.head);
            this.add(samples);
        }
        this
    }

    fn add(&mut self, samples: &FunctionSamples<'_>) {
        for body in samples.body.values() {
            self.total = self.total.saturating_add(body.count);
            self.max = self.max.max(body.count);
            self.counts += 1;
            *self.frequencies.entry(body.count).or_insert(0) += 1;
        }
        samples.inlined.values().flat_map(BTreeMap::values).for_each(|samples| self.add(samples));
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let figures = [self.total, self.max, self.max_head, self.counts, self.functions];
        figures.into_iter().for_each(|figure| uleb(&mut out, figure));
        uleb(&mut out, CUTOFFS.len() as u64);
        let mut rest = self.frequencies.iter().rev();
        let (mut sum, mut least, mut seen) = (0u128, 0, 0);
        for cutoff in CUTOFFS {
            let wanted = u128::from(self.total) * u128::from(cutoff) / 1_000_000;
            while sum < wanted
                && let Some((count, lines)) = rest.next()
            {
                sum += u128::from(*count) * u128::from(*lines);
                (least, seen) = (*count, seen + lines);
            }
            [cutoff, least, seen].into_iter().for_each(|figure| uleb(&mut out, figure));
        }
        out
    }
}

/// An unsigned number in groups of 7 bits, the lowest first.
fn uleb(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
