//! Source lines of code, with the functions inlined there: what a compiler knows its code by.
//!
//! A place is a function and the lines since its beginning, so that a profile outlives changes elsewhere in the file. A
//! discriminator tells apart blocks of one line (DWARF 4, 6.2.2), and copies of one block (LLVM's encoding of it).

use gimli::{
    AttributeValue, DebugInfoOffset, Dwarf, EndianSlice, LittleEndian, Unit, UnitOffset, constants as dw,
};
use object::{Object, ObjectSection, ObjectSymbol};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

type Reader<'d> = EndianSlice<'d, LittleEndian>;
type Entry<'d> = gimli::DebuggingInformationEntry<Reader<'d>>;

/// A place in a function of the source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceFrame<'d> {
    /// The function's name as the linker has it.
    pub function: &'d str,
    /// The line that the function is declared at.
    pub declared: u32,
    /// Lines since the one that the function is declared at, of which LLVM keeps 16 bits.
    pub line: u32,
    /// The discriminator as DWARF has it.
    pub discriminator: u32,
}

/// The sections of an ELF file that hold its DWARF, and its symbols: they tell which part of a function is its beginning.
#[derive(Debug, Default)]
pub struct DebugSections<'f> {
    sections: HashMap<String, Cow<'f, [u8]>>,
    symbols: HashSet<(u64, &'f str)>,
}

impl<'f> DebugSections<'f> {
    /// Of a file; those that are compressed are unpacked.
    pub fn of(file: &'f [u8]) -> Self {
        let Ok(file) = object::File::parse(file) else { return Self::default() };
        let sections = file.sections().filter_map(|section| {
            let name = section.name().ok().filter(|name| name.starts_with(".debug_"))?;
            Some((name.to_owned(), section.uncompressed_data().ok()?))
        });
        let functions = file.symbols().filter(|symbol| symbol.kind() == object::SymbolKind::Text);
        let symbols = functions.filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?)));
        Self { sections: sections.collect(), symbols: symbols.collect() }
    }
}

/// The lines of a binary.
#[derive(Debug, Default)]
pub struct SourceMap<'d> {
    /// Functions' code, sorted by address, with the function.
    ranges: Vec<(u64, u64, usize)>,
    functions: Vec<SourceFunction<'d>>,
    /// Sorted by address.
    sequences: Vec<Sequence>,
}

/// A function that has code of its own.
#[derive(Debug)]
pub struct SourceFunction<'d> {
    /// Its name as the linker has it.
    pub name: &'d str,
    /// Its code, and that of all others of its name: start and end of each part.
    pub parts: Vec<(u64, u64)>,
    ranges: Vec<(u64, u64)>,
    declared: u64,
    entry: Option<u64>,
    /// Sorted by depth, then by address.
    inlined: Vec<Inlined<'d>>,
}

/// A stretch of code that was inlined.
#[derive(Clone, Copy, Debug)]
struct Inlined<'d> {
    /// The number of its entry, and of that which it lies in: in all functions, from 0.
    number: usize,
    around: Option<usize>,
    depth: usize,
    start: u64,
    end: u64,
    origin: Origin<'d>,
    call_line: u64,
    call_discriminator: u64,
}

/// What a function is called and where it is declared.
#[derive(Clone, Copy, Debug, Default)]
struct Origin<'d> {
    name: &'d str,
    declared: u64,
}

/// Addresses in one go, with the line from each on.
#[derive(Debug)]
struct Sequence {
    end: u64,
    /// Address, line, discriminator; rising.
    rows: Vec<(u64, u32, u32)>,
}

/// Abstract origins and specifications that are followed for a name.
const LONGEST_CHAIN: usize = 16;

/// Inlined functions within each other that are told apart.
const DEEPEST: usize = 256;

impl<'d> SourceMap<'d> {
    /// Reads what there is; empty where there is nothing, and without what cannot be read.
    pub fn read(sections: &'d DebugSections<'_>) -> Self {
        Self::read_parts(sections, true)
    }

    /// The same without lines.
    pub(crate) fn read_functions(sections: &'d DebugSections<'_>) -> Self {
        Self::read_parts(sections, false)
    }

    /// Every stretch of inlined code, with the number of its function's entry, of the entry that this lies in, and its name.
    pub(crate) fn inlined(&self) -> impl Iterator<Item = (Range<u64>, usize, Option<usize>, &'d str)> {
        let stretches = self.functions.iter().flat_map(|function| &function.inlined);
        stretches.map(|part| (part.start..part.end, part.number, part.around, part.origin.name))
    }

    fn read_parts(sections: &'d DebugSections<'_>, with_lines: bool) -> Self {
        let section = |id: gimli::SectionId| {
            let data = sections.sections.get(id.name()).map(|data| &data[..]);
            Ok::<_, gimli::Error>(EndianSlice::new(data.unwrap_or_default(), LittleEndian))
        };
        let Ok(dwarf) = Dwarf::load(section) else { return Self::default() };
        let mut units = Vec::new();
        let mut headers = dwarf.units();
        while let Ok(Some(header)) = headers.next() {
            if let Ok(unit) = dwarf.unit(header) {
                units.push(unit);
            }
        }
        let map = Self::default();
        let mut walk = Walk { dwarf: &dwarf, units: &units, origins: HashMap::new(), map, inlined: 0 };
        for (index, unit) in units.iter().enumerate() {
            // What is read before an error stands.
            let _ = walk.functions(index, unit);
            if with_lines {
                let _ = walk.lines(unit);
            }
        }
        let mut map = walk.map;
        for (index, function) in map.functions.iter_mut().enumerate() {
            function.inlined.sort_by_key(|inlined| (inlined.depth, inlined.start));
            map.ranges.extend(function.ranges.iter().map(|(start, end)| (*start, *end, index)));
        }
        map.ranges.sort_unstable();
        map.join(&sections.symbols);
        map.sequences.sort_by_key(|sequence| sequence.rows.first().map(|row| row.0));
        map
    }

    /// Joins what has the same name: parts that were split off, clones of a coroutine. One of them is where the function
    /// begins, as its symbol says (LLVM's `ProfiledBinary::setIsFuncEntry`).
    fn join(&mut self, symbols: &HashSet<(u64, &str)>) {
        let mut parts: HashMap<&str, Vec<(u64, u64)>> = HashMap::new();
        for function in &self.functions {
            parts.entry(function.name).or_default().extend(&function.ranges);
        }
        parts.values_mut().for_each(|parts| {
            parts.sort_unstable();
            parts.dedup();
        });
        for function in &mut self.functions {
            let named = function.ranges.iter().find(|range| symbols.contains(&(range.0, function.name)));
            function.parts = parts.get(function.name).cloned().unwrap_or_default();
            if function.parts.len() > 1 && !symbols.is_empty() {
                function.entry = named.map(|range| range.0);
            }
        }
    }

    /// True where nothing is known of any line.
    pub fn is_empty(&self) -> bool {
        self.functions.is_empty() || self.sequences.is_empty()
    }

    /// The function whose code holds an address.
    pub fn function_at(&self, addr: u64) -> Option<&SourceFunction<'d>> {
        let after = self.ranges.partition_point(|range| range.0 <= addr);
        let (_, _, index) = self.ranges[..after].last().filter(|range| addr < range.1)?;
        self.functions.get(*index)
    }

    /// The function that is entered at an address.
    pub fn function_entered_at(&self, addr: u64) -> Option<&SourceFunction<'d>> {
        self.function_at(addr).filter(|function| function.entry == Some(addr))
    }

    /// The place of an instruction in the source, outermost function first; none where it is not known.
    pub fn frames(&self, addr: u64, frames: &mut Vec<SourceFrame<'d>>) {
        frames.clear();
        let Some(function) = self.function_at(addr) else { return };
        let place = |origin: Origin<'d>, line: u64, discriminator: u64| SourceFrame {
            function: origin.name,
            declared: origin.declared as u32,
            line: line.wrapping_sub(origin.declared) as u32 & 0xffff,
            discriminator: discriminator as u32,
        };
        let mut origin = Origin { name: function.name, declared: function.declared };
        let mut inlined = &function.inlined[..];
        for depth in 0.. {
            inlined = &inlined[inlined.partition_point(|inlined| inlined.depth < depth)..];
            let after = inlined.partition_point(|inlined| (inlined.depth, inlined.start) <= (depth, addr));
            let Some(call) = inlined[..after].last().filter(|inlined| addr < inlined.end) else { break };
            frames.push(place(origin, call.call_line, call.call_discriminator));
            origin = call.origin;
        }
        let (line, discriminator) = self.line(addr);
        frames.push(place(origin, line.into(), discriminator.into()));
    }

    /// The line table's row for an address; line 0 where there is none.
    fn line(&self, addr: u64) -> (u32, u32) {
        let after = self.sequences.partition_point(|sequence| sequence.rows[0].0 <= addr);
        let Some(sequence) = self.sequences[..after].last().filter(|sequence| addr < sequence.end) else {
            return (0, 0);
        };
        // Of several rows for one address the last one counts.
        let after = sequence.rows.partition_point(|row| row.0 <= addr);
        sequence.rows[..after].last().map_or((0, 0), |row| (row.1, row.2))
    }
}

/// Reads all units.
struct Walk<'a, 'd> {
    dwarf: &'a Dwarf<Reader<'d>>,
    units: &'a [Unit<Reader<'d>>],
    origins: HashMap<(usize, UnitOffset), Origin<'d>>,
    map: SourceMap<'d>,
    /// Entries of inlined functions so far.
    inlined: usize,
}

impl<'d> Walk<'_, 'd> {
    fn functions(&mut self, index: usize, unit: &Unit<Reader<'d>>) -> gimli::Result<()> {
        // The functions and inlined functions that the entry lies in: depth of the entry, function, depth of inlining, and
        // number of the inlined function.
        let mut open: Vec<(isize, usize, usize, Option<usize>)> = Vec::new();
        let mut entries = unit.entries();
        while let Some(entry) = entries.next_dfs()? {
            let at = entry.depth();
            while open.last().is_some_and(|(depth, ..)| *depth >= at) {
                open.pop();
            }
            match entry.tag() {
                dw::DW_TAG_subprogram => {
                    let ranges = self.ranges(unit, entry)?;
                    if ranges.is_empty() {
                        continue;
                    }
                    let origin = self.origin(index, entry.offset());
                    if origin.name.is_empty() {
                        continue;
                    }
                    let entry_pc = self.entry_pc(unit, entry)?.or(ranges.first().map(|range| range.0));
                    open.push((at, self.map.functions.len(), 0, None));
                    self.map.functions.push(SourceFunction {
                        name: origin.name,
                        declared: origin.declared,
                        parts: Vec::new(),
                        ranges,
                        entry: entry_pc,
                        inlined: Vec::new(),
                    });
                }
                dw::DW_TAG_inlined_subroutine => {
                    let Some(&(_, function, depth, around)) = open.last() else { continue };
                    let (ranges, origin) = (self.ranges(unit, entry)?, self.origin(index, entry.offset()));
                    if depth >= DEEPEST {
                        continue;
                    }
                    // Of what has no code nothing is told: what lies in it lies in what is around.
                    let number = self.inlined;
                    self.inlined += usize::from(!ranges.is_empty());
                    open.push((
                        at,
                        function,
                        depth + 1,
                        if ranges.is_empty() { around } else { Some(number) },
                    ));
                    let told =
                        |name| entry.attr_value(name).and_then(|value| value.udata_value()).unwrap_or(0);
                    let (call_line, call_discriminator) =
                        (told(dw::DW_AT_call_line), told(dw::DW_AT_GNU_discriminator));
                    let inlined = ranges.into_iter().map(|(start, end)| Inlined {
                        number,
                        around,
                        depth,
                        start,
                        end,
                        origin,
                        call_line,
                        call_discriminator,
                    });
                    if let Some(function) = self.map.functions.get_mut(function) {
                        function.inlined.extend(inlined);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The code of an entry; not that of functions which the linker threw away.
    fn ranges(&self, unit: &Unit<Reader<'d>>, entry: &Entry<'d>) -> gimli::Result<Vec<(u64, u64)>> {
        let mut ranges = Vec::new();
        let mut iter = self.dwarf.die_ranges(unit, entry)?;
        while let Some(range) = iter.next()? {
            if range.begin < range.end && range.begin != 0 {
                ranges.push((range.begin, range.end));
            }
        }
        Ok(ranges)
    }

    fn entry_pc(&self, unit: &Unit<Reader<'d>>, entry: &Entry<'d>) -> gimli::Result<Option<u64>> {
        match entry.attr_value(dw::DW_AT_low_pc) {
            Some(value) => self.dwarf.attr_address(unit, value),
            None => Ok(None),
        }
    }

    /// Name and line of a function's entry, or of those that it refers to.
    fn origin(&mut self, unit: usize, offset: UnitOffset) -> Origin<'d> {
        if let Some(origin) = self.origins.get(&(unit, offset)) {
            return *origin;
        }
        let (mut linkage, mut short, mut declared) = (None, None, None);
        let mut at = Some((unit, offset));
        for _ in 0..LONGEST_CHAIN {
            let Some((index, offset)) = at else { break };
            let Some(unit) = self.units.get(index) else { break };
            let Ok(entry) = unit.entry(offset) else { break };
            let text = |name| {
                let text = self.dwarf.attr_string(unit, entry.attr_value(name)?).ok()?;
                std::str::from_utf8(text.slice()).ok().filter(|text| !text.is_empty())
            };
            linkage = linkage
                .or_else(|| text(dw::DW_AT_linkage_name).or_else(|| text(dw::DW_AT_MIPS_linkage_name)));
            short = short.or_else(|| text(dw::DW_AT_name));
            declared = declared.or_else(|| entry.attr_value(dw::DW_AT_decl_line)?.udata_value());
            let next = entry
                .attr_value(dw::DW_AT_abstract_origin)
                .or_else(|| entry.attr_value(dw::DW_AT_specification));
            at = next.and_then(|next| self.target(index, next));
        }
        let name = linkage.or(short).unwrap_or_default();
        let origin = Origin { name, declared: declared.unwrap_or(0) };
        self.origins.insert((unit, offset), origin);
        origin
    }

    /// The entry that a reference leads to; with link-time optimisation it may be in another unit.
    fn target(&self, unit: usize, value: AttributeValue<Reader<'d>>) -> Option<(usize, UnitOffset)> {
        match value {
            AttributeValue::UnitRef(offset) => Some((unit, offset)),
            AttributeValue::DebugInfoRef(DebugInfoOffset(offset)) => {
                let start =
                    |unit: &Unit<Reader<'d>>| unit.header.debug_info_offset().map_or(0, |start| start.0);
                let index = self.units.partition_point(|unit| start(unit) <= offset).checked_sub(1)?;
                let offset = DebugInfoOffset(offset).to_unit_offset(&self.units[index].header)?;
                Some((index, offset))
            }
            _ => None,
        }
    }

    fn lines(&mut self, unit: &Unit<Reader<'d>>) -> gimli::Result<()> {
        let Some(program) = unit.line_program.clone() else { return Ok(()) };
        let mut program = program.rows();
        let mut rows: Vec<(u64, u32, u32)> = Vec::new();
        while let Some((_, row)) = program.next_row()? {
            if row.end_sequence() {
                let rows = std::mem::take(&mut rows);
                // Address 0 is that of code which the linker threw away.
                if rows.first().is_some_and(|first| first.0 != 0) && rows.is_sorted_by_key(|row| row.0) {
                    self.map.sequences.push(Sequence { end: row.address(), rows });
                }
                continue;
            }
            let line = row.line().map_or(0, |line| line.get() as u32);
            rows.push((row.address(), line, row.discriminator() as u32));
        }
        Ok(())
    }
}
