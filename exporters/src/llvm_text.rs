//! `profile --format llvm`: a sample profile as text (LLVM's `llvm/include/llvm/ProfileData/SampleProfWriter.h`).
//!
//! ```text
//! FUNCTION:TOTAL:HEAD
//!  LINE[.DISCRIMINATOR]: COUNT [CALLED:COUNT]...
//!  LINE[.DISCRIMINATOR]: INLINED:TOTAL
//!   LINE: COUNT
//!  !CFGChecksum: CHECKSUM
//! ```
//!
//! In a profile by probe, which has the checksums, a line is the number of a probe.

use crate::sample_profile::{FunctionSamples, Place, SampleProfile};
use std::cmp::Reverse;
use std::io::{self, Write};

/// Writes a profile, the function with the highest total first.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut impl Write, profile: &SampleProfile<'_>) -> io::Result<()> {
    for (name, samples) in in_order(profile) {
        writeln!(out, "{name}:{}:{}", samples.total, samples.head)?;
        write_samples(out, samples, 1)?;
    }
    Ok(())
}

/// The functions, the one with the highest total first.
pub(crate) fn in_order<'p, 'n>(profile: &'p SampleProfile<'n>) -> Vec<(&'n str, &'p FunctionSamples<'n>)> {
    let mut functions: Vec<_> = profile.functions.iter().map(|(name, samples)| (*name, samples)).collect();
    functions.sort_by_key(|(name, samples)| (Reverse(samples.total), *name));
    functions
}

fn write_samples(out: &mut impl Write, samples: &FunctionSamples<'_>, depth: usize) -> io::Result<()> {
    for (place, body) in &samples.body {
        write_place(out, place, depth)?;
        write!(out, "{}", body.count)?;
        let mut calls: Vec<_> = body.calls.iter().collect();
        calls.sort_by_key(|(name, count)| (Reverse(**count), **name));
        calls.into_iter().try_for_each(|(name, count)| write!(out, " {name}:{count}"))?;
        writeln!(out)?;
    }
    for (place, inlined) in &samples.inlined {
        for (name, samples) in inlined {
            write_place(out, place, depth)?;
            writeln!(out, "{name}:{}", samples.total)?;
            write_samples(out, samples, depth + 1)?;
        }
    }
    if let Some(checksum) = samples.checksum {
        writeln!(out, "{:depth$}!CFGChecksum: {checksum}", "")?;
    }
    Ok(())
}

fn write_place(out: &mut impl Write, place: &Place, depth: usize) -> io::Result<()> {
    match place.discriminator {
        0 => write!(out, "{:depth$}{}: ", "", place.line),
        discriminator => write!(out, "{:depth$}{}.{discriminator}: ", "", place.line),
    }
}
