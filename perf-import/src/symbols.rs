//! Functions of an image: where they begin and end, and what they are called.
//!
//! Names come from `.symtab` and `.dynsym`, of the image and of its debug file; PLT stubs get the name of what they jump
//! to. Of several names for one address one is chosen, always the same; the others are kept beside it. Where functions
//! overlap, the inner one has its bytes, and what is left of the outer one is a further part of it: so every address is in
//! one function at most.

use object::{
    Object, ObjectSection, ObjectSymbol, Relocation, RelocationFlags, RelocationTarget, SymbolKind, elf,
};
use ptflow_decoder::image::{FunctionId, FunctionRange, FunctionRole};
use ptflow_decoder::units::Svma;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::OnceLock;

/// A function, or a PLT stub.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Function<'d> {
    /// First address.
    pub start: Svma,
    /// One past the last address.
    pub end: Svma,
    /// The name as the file has it; for a stub, of what it jumps to.
    pub raw: &'d str,
    /// What it is; [`FunctionRole::Part`] for `.cold` parts.
    pub role: FunctionRole,
    /// For a part: the index of the function that it was split off from.
    pub whole: Option<usize>,
}

impl Function<'_> {
    /// The readable name.
    pub fn name(&self) -> String {
        readable(self.raw, self.role == FunctionRole::Stub)
    }
}

/// The functions of an image.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SymbolTable<'d> {
    functions: Vec<Function<'d>>,
    /// Disjoint stretches with the index of their function and their role, rising.
    ranges: Vec<(Svma, Svma, usize, FunctionRole)>,
    /// The names that were not chosen, by address.
    aliases: Vec<(Svma, &'d str)>,
}

impl<'d> SymbolTable<'d> {
    /// Reads an ELF file, and the debug file of the same build where there is one; empty where it cannot be read.
    pub fn read(image: &'d [u8], debug: Option<&'d [u8]>) -> Self {
        let Ok(file) = object::File::parse(image) else { return Self::default() };
        let debug = debug.and_then(|debug| object::File::parse(debug).ok());
        // A debug file has the symbols of sections whose bytes it has not: the sections are taken from the image.
        let sections = Sections::new(&file);
        let mut candidates = BTreeMap::new();
        let mut aliases = Vec::new();
        for file in std::iter::once(&file).chain(&debug) {
            gather(file, &sections, &mut candidates, &mut aliases);
        }
        aliases.sort_unstable();
        aliases.dedup();
        let mut functions = functions(&candidates, &sections);
        plt_stubs(&file, &candidates, &mut functions);
        functions.sort_by_key(|function| (function.start, function.end));
        link_parts(&mut functions, &candidates);
        let ranges = disjoint(&functions);
        Self { functions, ranges, aliases }
    }

    /// The functions, sorted by address.
    pub fn functions(&self) -> &[Function<'d>] {
        &self.functions
    }

    /// The function at an address, with its index.
    pub fn lookup(&self, svma: Svma) -> Option<(usize, &Function<'d>)> {
        let after = self.ranges.partition_point(|range| range.0 <= svma);
        let (_, _, index, _) = *self.ranges[..after].last().filter(|range| svma < range.1)?;
        Some((index, self.functions.get(index)?))
    }

    /// The other names of the function that begins at an address.
    pub fn aliases(&self, start: Svma) -> impl Iterator<Item = &'d str> {
        let from = self.aliases.partition_point(|alias| alias.0 < start);
        self.aliases[from..].iter().take_while(move |alias| alias.0 == start).map(|alias| alias.1)
    }

    /// The functions for the decoder; their names are added to `names`.
    pub(crate) fn ranges_named(&self, names: &mut FunctionNames) -> Vec<FunctionRange> {
        let mut ids: Vec<Option<FunctionId>> = self.functions.iter().map(|_| None).collect();
        let ranges = self.ranges.iter().map(|&(start, end, index, role)| {
            // A part is shown as the function that it belongs to.
            let whole = self.functions[index].whole.unwrap_or(index);
            let function = &self.functions[whole];
            let id = ids[whole].get_or_insert_with(|| names.push(function.raw, function.role));
            let role = match (role, function.raw) {
                (FunctionRole::Function, "_Unwind_Resume") => FunctionRole::Resume,
                _ => role,
            };
            FunctionRange { start, end, function: *id, role }
        });
        ranges.collect()
    }
}

/// Names of functions by id; made readable when they are first asked for.
#[derive(Clone, Debug, Default)]
pub struct FunctionNames {
    names: Vec<Name>,
}

#[derive(Clone, Debug)]
struct Name {
    raw: Box<str>,
    stub: bool,
    readable: OnceLock<Box<str>>,
}

impl FunctionNames {
    fn push(&mut self, raw: &str, role: FunctionRole) -> FunctionId {
        let stub = role == FunctionRole::Stub;
        self.names.push(Name { raw: raw.into(), stub, readable: OnceLock::new() });
        FunctionId(self.names.len() as u32 - 1)
    }

    /// The readable name.
    pub fn get(&self, id: FunctionId) -> &str {
        let Some(name) = self.names.get(id.0 as usize) else { return "?" };
        name.readable.get_or_init(|| readable(&name.raw, name.stub).into())
    }

    /// The name as the file has it: what compilers and linkers know the function by.
    pub fn raw(&self, id: FunctionId) -> &str {
        self.names.get(id.0 as usize).map_or("?", |name| &name.raw)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// The sections with code: start and end, sorted.
struct Sections(Vec<(u64, u64)>);

impl Sections {
    fn new(file: &object::File<'_>) -> Self {
        let text = file.sections().filter(|section| section.kind() == object::SectionKind::Text);
        let mut ends: Vec<(u64, u64)> = text
            .map(|section| (section.address(), section.address().saturating_add(section.size())))
            .collect();
        ends.sort_unstable();
        Self(ends)
    }

    /// The end of the section that holds an address.
    fn end(&self, address: u64) -> Option<u64> {
        let after = self.0.partition_point(|section| section.0 <= address);
        self.0[..after].last().map(|section| section.1).filter(|end| address < *end)
    }
}

/// A name for an address.
struct Candidate<'d> {
    name: &'d str,
    size: u64,
    typed: bool,
    weak: bool,
    global: bool,
    /// For local symbols: which of the files that were linked.
    file: Option<usize>,
}

impl Candidate<'_> {
    /// Which of the names of one address to take: sized before unsized, typed before untyped, strong before weak, global
    /// before local, fewer leading underscores, longer, then by the alphabet (as linux `tools/perf/util/symbol.c`,
    /// `choose_best_symbol`, and then so that the order of the file does not matter).
    fn rank(&self) -> impl Ord + '_ {
        let underscores = self.name.bytes().take_while(|byte| *byte == b'_').count();
        (
            self.size > 0,
            self.typed,
            !self.weak,
            self.global,
            std::cmp::Reverse(underscores),
            self.name.len(),
            std::cmp::Reverse(self.name),
        )
    }
}

fn gather<'d>(
    file: &object::File<'d>,
    sections: &Sections,
    best: &mut BTreeMap<u64, Candidate<'d>>,
    aliases: &mut Vec<(Svma, &'d str)>,
) {
    let mut source_file = 0;
    for symbol in file.symbols().chain(file.dynamic_symbols()) {
        let typed = match symbol.kind() {
            SymbolKind::Text => true,
            // Assembly without types.
            SymbolKind::Unknown | SymbolKind::Label => false,
            SymbolKind::File => {
                source_file += 1;
                continue;
            }
            _ => continue,
        };
        let (Ok(name), true) = (symbol.name(), symbol.is_definition()) else { continue };
        if name.is_empty() || sections.end(symbol.address()).is_none() {
            continue;
        }
        let candidate = Candidate {
            name,
            size: symbol.size(),
            typed,
            weak: symbol.is_weak(),
            global: symbol.is_global(),
            file: symbol.is_local().then_some(source_file),
        };
        let start = Svma(symbol.address());
        match best.entry(symbol.address()) {
            std::collections::btree_map::Entry::Vacant(slot) => _ = slot.insert(candidate),
            std::collections::btree_map::Entry::Occupied(mut slot) => {
                let chosen = slot.get();
                if chosen.name == candidate.name && chosen.rank() >= candidate.rank() {
                    continue;
                }
                let loser = if candidate.rank() > chosen.rank() { slot.insert(candidate) } else { candidate };
                if loser.name != slot.get().name {
                    aliases.push((start, loser.name));
                }
            }
        }
    }
}

fn functions<'d>(best: &BTreeMap<u64, Candidate<'d>>, sections: &Sections) -> Vec<Function<'d>> {
    let mut functions: Vec<Function<'d>> = Vec::with_capacity(best.len());
    let mut typed_end = 0;
    let mut following = best.keys().skip(1);
    for (&start, candidate) in best {
        let next = following.next().copied();
        // A label inside a function of known size is a place in it, not a function.
        if candidate.size == 0 && !candidate.typed && start < typed_end {
            continue;
        }
        let section_end = sections.end(start).unwrap_or(start);
        // A symbol without a size reaches to the next one, or to the section's end.
        let end = match candidate.size {
            0 => next.unwrap_or(section_end).min(section_end),
            size => start.saturating_add(size),
        };
        if candidate.typed {
            typed_end = typed_end.max(end);
        }
        functions.push(Function {
            start: Svma(start),
            end: Svma(end),
            raw: candidate.name,
            role: FunctionRole::Function,
            whole: None,
        });
    }
    functions
}

/// Tells split-off parts from functions. GCC and Clang name the part of `f` that is seldom run `f.cold`, as a local
/// symbol; of several local `f` it belongs to the one of its own file.
fn link_parts(functions: &mut [Function<'_>], candidates: &BTreeMap<u64, Candidate<'_>>) {
    let file_of = |function: &Function<'_>| candidates.get(&function.start.0).and_then(|found| found.file);
    let mut by_file = HashMap::new();
    let mut by_name = HashMap::new();
    for (index, function) in functions.iter().enumerate() {
        if function.role == FunctionRole::Function {
            by_file.entry((file_of(function), function.raw)).or_insert(index);
            by_name.entry(function.raw).or_insert(index);
        }
    }
    let whole_of_part = |function: &Function<'_>| {
        let name = whole_name(function.raw).filter(|_| function.role == FunctionRole::Function)?;
        let global = by_file.get(&(None, name));
        by_file.get(&(file_of(function), name)).or(global).or(by_name.get(name)).copied()
    };
    let wholes: Vec<Option<usize>> = functions.iter().map(whole_of_part).collect();
    for (function, whole) in functions.iter_mut().zip(wholes) {
        if whole.is_some() {
            function.role = FunctionRole::Part;
            function.whole = whole;
        }
    }
}

/// The function that a `.cold` part was split off from.
fn whole_name(name: &str) -> Option<&str> {
    let at = name.find(".cold")?;
    let rest = &name[at + ".cold".len()..];
    (at > 0 && rest.bytes().all(|byte| byte == b'.' || byte.is_ascii_digit())).then(|| &name[..at])
}

/// Cuts overlapping functions so that every address is in the one that begins last before it.
fn disjoint(functions: &[Function<'_>]) -> Vec<(Svma, Svma, usize, FunctionRole)> {
    let mut ranges = Vec::with_capacity(functions.len());
    // The functions around the current address, innermost last; and up to where ranges are made.
    let mut open: Vec<usize> = Vec::new();
    let mut at = Svma(0);
    let mut advance = |open: &mut Vec<usize>, to: Svma| {
        while let Some(&index) = open.last() {
            let function = &functions[index];
            let end = function.end.min(to);
            if at < end {
                let first = at == function.start;
                let role = match function.role {
                    FunctionRole::Function if !first => FunctionRole::Part,
                    role => role,
                };
                ranges.push((at, end, index, role));
                at = end;
            }
            if function.end > to {
                break;
            }
            open.pop();
        }
        at = at.max(to);
    };
    for (index, function) in functions.iter().enumerate() {
        advance(&mut open, function.start);
        open.push(index);
    }
    advance(&mut open, Svma(u64::MAX));
    ranges
}

/// Names PLT stubs by the slot that each jumps through.
fn plt_stubs<'d>(
    file: &object::File<'d>,
    candidates: &BTreeMap<u64, Candidate<'d>>,
    functions: &mut Vec<Function<'d>>,
) {
    let mut slots: HashMap<u64, &'d str> = HashMap::new();
    let table = file.dynamic_symbol_table();
    // What the slot of a stub will hold: a symbol's address, or what an IFUNC's resolver gives.
    let resolver = |relocation: &Relocation| {
        let by_resolver = RelocationFlags::Elf { r_type: elf::R_X86_64_IRELATIVE };
        let address = (relocation.flags() == by_resolver).then(|| relocation.addend().cast_unsigned())?;
        Some(candidates.get(&address)?.name)
    };
    let name_of = |relocation: &Relocation| match relocation.target() {
        RelocationTarget::Symbol(index) => {
            object::ObjectSymbolTable::symbol_by_index(table.as_ref()?, index).ok()?.name().ok()
        }
        _ => resolver(relocation),
    };
    for (slot, relocation) in file.dynamic_relocations().into_iter().flatten() {
        slots.extend(name_of(&relocation).map(|name| (slot, name)));
    }
    // A static program has no dynamic symbols: what it relocates itself stands with the section.
    for section in file.sections().filter(|section| section.name().is_ok_and(|name| name.starts_with(".got")))
    {
        slots.extend(section.relocations().filter_map(|(slot, of)| Some((slot, resolver(&of)?))));
    }
    for section in file.sections() {
        let Ok(".plt" | ".plt.sec" | ".plt.got") = section.name() else { continue };
        let Ok(bytes) = section.data() else { continue };
        // Stubs have 16 bytes; those of .plt.got, and of static programs, have 8 unless they begin with endbr64 (System V ABI
        // for x86-64, 5.2).
        let stub = if section.align() == 8 { 8 } else { 16 };
        let starts = (section.address()..=u64::MAX).step_by(stub);
        for (code, start) in bytes.chunks(stub).zip(starts) {
            let raw = slot_of(code, start).and_then(|slot| slots.get(&slot)).copied().unwrap_or("");
            let end = Svma(start.saturating_add(code.len() as u64));
            let role = FunctionRole::Stub;
            functions.push(Function { start: Svma(start), end, raw, role, whole: None });
        }
    }
}

/// The address that a stub's `jmp *disp(%rip)` (ff 25, perhaps behind endbr64 or bnd) reads.
fn slot_of(code: &[u8], start: u64) -> Option<u64> {
    let at = code.windows(2).position(|pair| pair == [0xff, 0x25])?;
    let displacement = i32::from_le_bytes(code.get(at + 2..at + 6)?.try_into().ok()?);
    Some(start.wrapping_add(at as u64 + 6).wrapping_add_signed(i64::from(displacement)))
}

fn readable(raw: &str, stub: bool) -> String {
    match (stub, raw) {
        (false, raw) => demangle(raw),
        // The first entry of a PLT, or one whose slot is none of a symbol.
        (true, "") => "plt".to_owned(),
        (true, raw) => format!("{}@plt", demangle(raw)),
    }
}

/// A name as people write it: Rust, then C++, else as it is.
pub fn demangle(name: &str) -> String {
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        return format!("{rust:#}");
    }
    if name.starts_with("_Z")
        && let Ok(symbol) = cpp_demangle::Symbol::new(name)
    {
        let mut readable = Bounded(String::new());
        if symbol.structured_demangle(&mut readable, &cpp_demangle::DemangleOptions::default()).is_ok() {
            return readable.0;
        }
    }
    name.to_owned()
}

/// Text up to a limit: substitutions let a short mangled name stand for one that fills the memory.
struct Bounded(String);

impl cpp_demangle::DemangleWrite for Bounded {
    fn write_string(&mut self, text: &str) -> fmt::Result {
        const LONGEST: usize = 1 << 16;
        if self.0.len() + text.len() > LONGEST {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}
