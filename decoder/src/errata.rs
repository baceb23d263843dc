//! Known defects of Intel's CPUs that a decoder can make up for, by the code names of Intel's specification updates.
//!
//! The lists of models follow the specification updates; libipt's `pt_config.c` (BSD-3) chooses by the same.
//!
//! Three more need no flag, for what they ask is right on every CPU: a TIP.PGD without address behind a direct branch out
//! of a filter region (SKL014, KBL014) is matched with the filters; a TIP.PGD behind an overflow (APL11) says that tracing
//! is off; and where CYC and MTC are missing before a PSB (SKL168) the ratio of cycles to time is implausible, which the
//! clock looks at anyway.

use crate::config::CpuModel;

/// Which defects the recording CPU has. All false for an unknown CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "one flag a defect")]
pub struct Errata {
    /// PSB+ directly before a TIP.PGE carries FUP and MODE.Exec although tracing is off (also SKD024, SKL021, KBL021).
    pub bdm70: bool,
    /// A wrong branch target is recorded directly before a TSX abort.
    pub bdm64: bool,
    /// OVF replaces the remaining bytes of a CYC (also SKL049, KBL041).
    pub skd007: bool,
    /// FUP or TIP.PGE is missing after an OVF (also SKD014, SKL033, KBL030).
    pub skd010: bool,
    /// A VM entry that clears TraceEn sends a FUP before the TIP.PGD (also SKL024, KBL023).
    pub skd022: bool,
    /// OVF may be followed by a FUP although tracing is off.
    pub apl12: bool,
    /// TMA may be corrupt, with one byte too many.
    pub skz84: bool,
    /// A FUP at an indirect branch may carry the address behind it (Goldmont).
    pub fup_with_next_ip: bool,
}

impl Errata {
    /// The defects of a CPU.
    pub fn of(cpu: Option<CpuModel>) -> Self {
        let mut errata = Self::default();
        let Some(CpuModel { family, model, .. }) = cpu else { return errata };
        let mut set = |flags: &[fn(&mut Self) -> &mut bool]| {
            for flag in flags {
                *flag(&mut errata) = true;
            }
        };
        match (family, model) {
            (6, 0x3d | 0x47 | 0x4f | 0x56) => set(&[|e| &mut e.bdm70, |e| &mut e.bdm64]),
            (6, 0x4e | 0x5e | 0x8e | 0x9e | 0xa5 | 0xa6) => {
                set(&[|e| &mut e.bdm70, |e| &mut e.skd007, |e| &mut e.skd022, |e| &mut e.skd010]);
            }
            (6, 0x55 | 0x6a | 0x6c | 0x8f | 0xcf | 0xad | 0xae) | (0x13, 0x01) => {
                set(&[|e| &mut e.bdm70, |e| &mut e.skd022, |e| &mut e.skz84]);
            }
            (6, 0x66 | 0x7d | 0x7e | 0x8c | 0x8d | 0xa7 | 0xa8)
            | (6, 0x97 | 0x9a | 0xba | 0xb7 | 0xbf | 0xc5 | 0xc6 | 0xb5 | 0xaa | 0xac | 0xbd | 0xcc | 0xd5)
            | (0x12, 0x01 | 0x03) => set(&[|e| &mut e.bdm70, |e| &mut e.skd022]),
            (6, 0x5c) => set(&[|e| &mut e.apl12, |e| &mut e.fup_with_next_ip]),
            (6, 0x5f) => set(&[|e| &mut e.apl12]),
            _ => {}
        }
        errata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_model() {
        let of = |family, model| Errata::of(Some(CpuModel { family, model, stepping: 1 }));
        assert!(of(6, 0x4f).bdm64 && of(6, 0x4f).bdm70 && !of(6, 0x4f).skd010);
        assert!(of(6, 0x8e).skd010);
        assert!(of(6, 0x5c).fup_with_next_ip && !of(6, 0x5f).fup_with_next_ip);
        assert_eq!(of(6, 0x01), Errata::default());
        assert_eq!(Errata::of(None), Errata::default());
    }
}
