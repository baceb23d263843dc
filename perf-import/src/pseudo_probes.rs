//! Pseudo-probes: marks that clang leaves in a program's flow (`-fpseudo-probe-for-profiling`), each at the address of the
//! instruction that stands for it. Optimisation moves and copies them with their blocks, so that they say better than lines
//! do which block of the source ran.
//!
//! Two sections that are never loaded hold them (LLVM's `llvm/include/llvm/MC/MCPseudoProbe.h`):
//!
//! ```text
//! .pseudo_probe_desc   FUNCTION (u64)  CHECKSUM (u64)  length of NAME (ULEB128)  NAME          of each function
//! .pseudo_probe        FUNCTION (u64)  number of PROBES (ULEB128)  number of INLINED (ULEB128)
//!                      PROBES   INDEX (ULEB128)  KIND 3:0, ATTRIBUTES 6:4, IS_DELTA 7  ADDRESS  [DISCRIMINATOR (ULEB128)]
//!                      INLINED  INDEX of the call (ULEB128), and all of this again
//! ```
//!
//! A function is the first half of its name's MD5. An address is the difference to that of the probe before (SLEB128); before
//! the first one stands the function's beginning, or in older files an address itself (u64).

use object::{Object, ObjectSection, ObjectSymbol};
use std::borrow::Cow;
use std::collections::HashMap;

/// The sections of an ELF file that hold its probes, and where its functions begin.
#[derive(Debug, Default)]
pub struct ProbeSections<'f> {
    probes: Cow<'f, [u8]>,
    descriptions: Cow<'f, [u8]>,
    starts: HashMap<u64, u64>,
}

impl<'f> ProbeSections<'f> {
    /// Of a file.
    pub fn of(file: &'f [u8]) -> Self {
        let Ok(file) = object::File::parse(file) else { return Self::default() };
        let section = |name| file.section_by_name(name)?.uncompressed_data().ok();
        let (Some(probes), Some(descriptions)) = (section(".pseudo_probe"), section(".pseudo_probe_desc"))
        else {
            return Self::default();
        };
        let functions = file.symbols().filter(|symbol| symbol.kind() == object::SymbolKind::Text);
        let starts = functions
            .filter_map(|symbol| Some((guid(symbol.name_bytes().ok()?), symbol.address())))
            .collect();
        Self { probes, descriptions, starts }
    }
}

/// The number that stands for a name (LLVM's `MD5Hash`).
fn guid(name: &[u8]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = md5::compute(name).0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// What a probe stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeKind {
    /// A block.
    Block,
    /// A call.
    Call,
}

/// A frame of a probe's place in the source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProbeFrame<'d> {
    /// The function's name as the linker has it.
    pub function: &'d str,
    /// What tells whether its flow graph is still the same.
    pub checksum: u64,
    /// The number of the probe in the function: of the call of the next frame, or in the last frame its own.
    pub probe: u32,
}

/// A probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// The instruction that stands for it.
    pub addr: u64,
    /// What it stands for.
    pub kind: ProbeKind,
    /// Tells its copies apart, where the compiler was asked to.
    pub discriminator: u32,
    index: u32,
    body: u32,
}

/// A function's body: on its own, or where it was inlined.
#[derive(Clone, Copy, Debug)]
struct Body {
    function: u64,
    /// Where it was inlined: the body and the probe of the call in it; none where the call's probe is not known.
    caller: Option<(u32, u32)>,
    /// The function whose code it is part of.
    outermost: u64,
}

/// The probes of a binary.
#[derive(Debug, Default)]
pub struct PseudoProbes<'d> {
    functions: HashMap<u64, (&'d str, u64)>,
    bodies: Vec<Body>,
    /// By address; of one address in the order of the section.
    probes: Vec<Probe>,
}

impl<'d> PseudoProbes<'d> {
    /// Reads what there is; what comes before damage stands.
    pub fn read(sections: &'d ProbeSections<'_>) -> Self {
        let mut this = Self { functions: functions(&sections.descriptions), ..Self::default() };
        let mut walk = Walk { rest: &sections.probes, last: 0, is_absolute: false, probes: &mut this };
        while walk.tree(&sections.starts).is_some() {}
        this.probes.sort_by_key(|probe| probe.addr);
        this
    }

    /// True where the binary has none.
    pub fn is_empty(&self) -> bool {
        self.probes.is_empty()
    }

    /// The probes at an address.
    pub fn at(&self, addr: u64) -> &[Probe] {
        let start = self.probes.partition_point(|probe| probe.addr < addr);
        let end = self.probes[start..].partition_point(|probe| probe.addr == addr);
        &self.probes[start..][..end]
    }

    /// The function whose code a probe is part of. The frames need not begin with it: some calls' probes got lost.
    pub fn outermost(&self, probe: &Probe) -> Option<&'d str> {
        let body = self.bodies.get(probe.body as usize)?;
        Some(self.functions.get(&body.outermost)?.0)
    }

    /// A probe's place in the source, outermost function first; none where a function on the way has no name.
    pub fn frames(&self, probe: &Probe, frames: &mut Vec<ProbeFrame<'d>>) {
        frames.clear();
        let mut at = Some((probe.body, probe.index));
        while let Some((body, index)) = at {
            let Some(body) = self.bodies.get(body as usize) else { break };
            let Some((function, checksum)) = self.functions.get(&body.function) else {
                frames.clear();
                return;
            };
            frames.push(ProbeFrame { function, checksum: *checksum, probe: index });
            at = body.caller;
        }
        frames.reverse();
    }
}

/// Name and checksum by number.
fn functions(mut rest: &[u8]) -> HashMap<u64, (&str, u64)> {
    let mut functions = HashMap::new();
    let mut next = || {
        let (function, checksum) = (word(&mut rest)?, word(&mut rest)?);
        let len = usize::try_from(uleb(&mut rest)?).ok()?;
        let (name, behind) = rest.split_at_checked(len)?;
        rest = behind;
        Some((function, name, checksum))
    };
    while let Some((function, name, checksum)) = next() {
        if let Ok(name) = std::str::from_utf8(name) {
            functions.entry(function).or_insert((name, checksum));
        }
    }
    functions
}

/// Reads bodies, one within the other.
struct Walk<'a, 'd> {
    rest: &'d [u8],
    /// The address that the next one is told against.
    last: u64,
    /// Addresses stand for themselves at the beginning of functions.
    is_absolute: bool,
    probes: &'a mut PseudoProbes<'d>,
}

/// Bits of the byte behind a probe's index.
const KIND: u8 = 0xf;
const BLOCK: u8 = 0;
/// No probe: it only tells where a part of a function begins that was split off.
const SENTINEL: u8 = 2 << 4;
const HAS_DISCRIMINATOR: u8 = 4 << 4;
const IS_DELTA: u8 = 1 << 7;

impl Walk<'_, '_> {
    /// A function with all that was inlined in it.
    fn tree(&mut self, starts: &HashMap<u64, u64>) -> Option<()> {
        let outermost = word(&mut self.rest)?;
        if !self.is_absolute
            && let Some(start) = starts.get(&outermost)
        {
            self.last = *start;
        }
        // Bodies whose inlined ones are still to come, and how many of them.
        let mut open = vec![self.body(outermost, outermost, None, starts)?];
        while let Some((body, left)) = open.last_mut() {
            if *left == 0 {
                open.pop();
                continue;
            }
            *left -= 1;
            let body = *body;
            let site = u32::try_from(uleb(&mut self.rest)?).ok()?;
            let caller = if site == 0 { None } else { Some((body, site)) };
            let function = word(&mut self.rest)?;
            open.push(self.body(function, outermost, caller, starts)?);
        }
        Some(())
    }

    /// The probes of a body; gives its number and how many are inlined in it.
    fn body(
        &mut self,
        function: u64,
        outermost: u64,
        caller: Option<(u32, u32)>,
        starts: &HashMap<u64, u64>,
    ) -> Option<(u32, u64)> {
        let (probes, inlined) = (uleb(&mut self.rest)?, uleb(&mut self.rest)?);
        let body = u32::try_from(self.probes.bodies.len()).ok()?;
        self.probes.bodies.push(Body { function, caller, outermost });
        for _ in 0..probes {
            let index = u32::try_from(uleb(&mut self.rest)?).ok()?;
            let (what, behind) = self.rest.split_first()?;
            self.rest = behind;
            let is_sentinel = what & SENTINEL != 0;
            self.last = match what & IS_DELTA != 0 {
                true => self.last.wrapping_add_signed(sleb(&mut self.rest)?),
                false => {
                    let addr = word(&mut self.rest)?;
                    self.is_absolute |= !is_sentinel;
                    // A sentinel's is the number of the part's own name.
                    starts.get(&addr).copied().filter(|_| is_sentinel).unwrap_or(addr)
                }
            };
            let discriminator = match what & HAS_DISCRIMINATOR != 0 {
                true => uleb(&mut self.rest)? as u32,
                false => 0,
            };
            if !is_sentinel {
                let kind = if what & KIND == BLOCK { ProbeKind::Block } else { ProbeKind::Call };
                self.probes.probes.push(Probe { addr: self.last, kind, discriminator, index, body });
            }
        }
        Some((body, inlined))
    }
}

fn word(rest: &mut &[u8]) -> Option<u64> {
    let (word, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(u64::from_le_bytes(*word))
}

/// The groups of 7 bits of a number, and the bit behind the last.
fn groups(rest: &mut &[u8]) -> Option<(u64, u32)> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, shift + 7));
        }
    }
    None
}

fn uleb(rest: &mut &[u8]) -> Option<u64> {
    Some(groups(rest)?.0)
}

fn sleb(rest: &mut &[u8]) -> Option<i64> {
    let (value, bits) = groups(rest)?;
    let unused = 64 - bits.min(64);
    Some((value << unused) as i64 >> unused)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two functions, the second inlined in the first at its call, whose probe is the third.
    fn sections() -> ProbeSections<'static> {
        let [outer, inner] = [guid(b"outer"), guid(b"inner")];
        let mut descriptions = Vec::new();
        for (function, checksum, name) in [(outer, 7u64, "outer"), (inner, 8, "inner")] {
            descriptions.extend(function.to_le_bytes());
            descriptions.extend(checksum.to_le_bytes());
            descriptions.push(name.len() as u8);
            descriptions.extend(name.as_bytes());
        }
        let mut probes = outer.to_le_bytes().to_vec();
        // Two probes, one body inlined. A block 4 bytes behind the function's beginning; a block 3 before that.
        probes.extend([2, 1, 1, IS_DELTA, 4, 2, IS_DELTA, 0x7d]);
        // At probe 3: a body of two probes, a block at the same address, a call 200 bytes behind with a discriminator.
        probes.push(3);
        probes.extend(inner.to_le_bytes());
        probes.extend([2, 0, 1, IS_DELTA, 0, 2, IS_DELTA | HAS_DISCRIMINATOR | 2, 0xc8, 0x01, 9]);
        let starts = HashMap::from([(outer, 0x1000)]);
        ProbeSections { probes: probes.into(), descriptions: descriptions.into(), starts }
    }

    #[test]
    fn by_hand() {
        let sections = sections();
        let probes = PseudoProbes::read(&sections);
        let at = |addr| {
            let mut all = Vec::new();
            for probe in probes.at(addr) {
                let mut frames = Vec::new();
                probes.frames(probe, &mut frames);
                assert_eq!(probes.outermost(probe), Some("outer"));
                let frames: Vec<_> =
                    frames.iter().map(|frame| (frame.function, frame.checksum, frame.probe)).collect();
                all.push((frames, probe.kind, probe.discriminator));
            }
            all
        };
        use ProbeKind::{Block, Call};
        assert_eq!(at(0x1004), [(vec![("outer", 7, 1)], Block, 0)]);
        let twice = [(vec![("outer", 7, 2)], Block, 0), (vec![("outer", 7, 3), ("inner", 8, 1)], Block, 0)];
        assert_eq!(at(0x1001), twice);
        assert_eq!(at(0x1001 + 200), [(vec![("outer", 7, 3), ("inner", 8, 2)], Call, 9)]);
        assert_eq!(at(0x1002), []);
    }

    #[test]
    fn names_as_llvm_numbers_them() {
        // llvm::Function::getGUID("main"), as llvm/test/ThinLTO has it.
        assert_eq!(guid(b"main"), 15_822_663_052_811_949_562);
    }

    #[test]
    fn cut_off_anywhere() {
        let whole = sections();
        for len in 0..whole.probes.len() {
            let cut = ProbeSections {
                probes: whole.probes[..len].to_vec().into(),
                descriptions: whole.descriptions[..len.min(whole.descriptions.len())].to_vec().into(),
                starts: whole.starts.clone(),
            };
            assert!(PseudoProbes::read(&cut).probes.len() <= 4);
        }
        // Numbers that promise more than there is.
        let huge = ProbeSections {
            probes: [&[0; 8][..], &[0xff; 9], &[1], &[0xff; 9], &[1]].concat().into(),
            ..ProbeSections::default()
        };
        assert!(PseudoProbes::read(&huge).is_empty());
    }
}
