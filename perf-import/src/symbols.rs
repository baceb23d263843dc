//! Functions of an image: where they begin and end, and what they are called.
//!
//! Names come from `.symtab` and `.dynsym`; PLT stubs get the name of what they jump to. Of several names for one
//! address one is chosen, always the same.

use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SymbolKind};
use ptflow_decoder::image::{FunctionId, FunctionRange, FunctionRole};
use ptflow_decoder::units::Svma;
use std::collections::{BTreeMap, HashMap};

/// Names of functions by id.
#[derive(Clone, Debug, Default)]
pub struct FunctionNames {
    names: Vec<String>,
}

impl FunctionNames {
    fn push(&mut self, name: String) -> FunctionId {
        self.names.push(name);
        FunctionId(self.names.len() as u32 - 1)
    }

    /// The readable name.
    pub fn get(&self, id: FunctionId) -> &str {
        self.names.get(id.0 as usize).map_or("?", String::as_str)
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

struct Candidate<'d> {
    name: &'d str,
    size: u64,
    typed: bool,
    weak: bool,
    global: bool,
}

impl Candidate<'_> {
    /// Which of the names of one address to take: sized before unsized, typed before untyped, strong before weak, global
    /// before local, fewer leading underscores, longer, then by the alphabet (as the kernel's `tools/perf/util/symbol.c`
    /// chooses).
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

/// The functions of an ELF file, sorted by address; adds their names to `names`.
pub(crate) fn functions(file: &[u8], names: &mut FunctionNames) -> Vec<FunctionRange> {
    let Ok(file) = object::File::parse(file) else { return Vec::new() };
    let text: Vec<(u64, u64)> = file
        .sections()
        .filter(|section| section.kind() == object::SectionKind::Text)
        .map(|section| (section.address(), section.address().saturating_add(section.size())))
        .collect();
    let section_end = |addr: u64| text.iter().find(|(start, end)| *start <= addr && addr < *end).map(|s| s.1);
    let mut best: BTreeMap<u64, Candidate<'_>> = BTreeMap::new();
    for symbol in file.symbols().chain(file.dynamic_symbols()) {
        let typed = match symbol.kind() {
            SymbolKind::Text => true,
            // Assembly without types.
            SymbolKind::Unknown | SymbolKind::Label => false,
            _ => continue,
        };
        let (Ok(name), true) = (symbol.name(), symbol.is_definition()) else { continue };
        if name.is_empty() || section_end(symbol.address()).is_none() {
            continue;
        }
        let candidate = Candidate {
            name,
            size: symbol.size(),
            typed,
            weak: symbol.is_weak(),
            global: symbol.is_global(),
        };
        match best.entry(symbol.address()) {
            std::collections::btree_map::Entry::Vacant(slot) => _ = slot.insert(candidate),
            std::collections::btree_map::Entry::Occupied(mut slot) => {
                if candidate.rank() > slot.get().rank() {
                    slot.insert(candidate);
                }
            }
        }
    }
    let starts: Vec<u64> = best.keys().copied().collect();
    let mut by_name: HashMap<&str, FunctionId> = HashMap::new();
    let mut ranges = Vec::with_capacity(best.len());
    let mut parts = Vec::new();
    for (index, (&start, candidate)) in best.iter().enumerate() {
        // A symbol without a size reaches to the next one, or to the section's end.
        let limit = section_end(start).unwrap_or(start);
        let end = match candidate.size {
            0 => starts.get(index + 1).copied().unwrap_or(limit).min(limit),
            size => start.saturating_add(size),
        };
        let range = |function, role| FunctionRange { start: Svma(start), end: Svma(end), function, role };
        if let Some(whole) = whole_of(candidate.name) {
            parts.push((whole, candidate.name, start, end));
            continue;
        }
        let id = names.push(demangle(candidate.name));
        by_name.entry(candidate.name).or_insert(id);
        ranges.push(range(id, FunctionRole::Function));
    }
    for (whole, name, start, end) in parts {
        let (function, role) = match by_name.get(whole) {
            Some(function) => (*function, FunctionRole::Part),
            None => (names.push(demangle(name)), FunctionRole::Function),
        };
        ranges.push(FunctionRange { start: Svma(start), end: Svma(end), function, role });
    }
    plt_stubs(&file, names, &mut ranges);
    ranges.sort_by_key(|range| (range.start, range.end));
    ranges
}

/// The function that a `.cold` part was split off from.
fn whole_of(name: &str) -> Option<&str> {
    let at = name.find(".cold")?;
    let rest = &name[at + ".cold".len()..];
    (at > 0 && rest.bytes().all(|byte| byte == b'.' || byte.is_ascii_digit())).then(|| &name[..at])
}

/// Names PLT stubs by the slot that each jumps through.
fn plt_stubs(file: &object::File<'_>, names: &mut FunctionNames, ranges: &mut Vec<FunctionRange>) {
    let mut slots: HashMap<u64, String> = HashMap::new();
    if let Some(relocations) = file.dynamic_relocations() {
        for (slot, relocation) in relocations {
            if let RelocationTarget::Symbol(index) = relocation.target()
                && let Some(table) = file.dynamic_symbol_table()
                && let Ok(symbol) = object::ObjectSymbolTable::symbol_by_index(&table, index)
                && let Ok(name) = symbol.name()
            {
                slots.insert(slot, demangle(name));
            }
        }
    }
    const STUB: u64 = 16;
    for section in file.sections() {
        let Ok(".plt" | ".plt.sec" | ".plt.got") = section.name() else { continue };
        let Ok(bytes) = section.data() else { continue };
        let stub = match section.name() {
            Ok(".plt.got") if section.align() == 8 => 8,
            _ => STUB,
        };
        for (index, code) in bytes.chunks(stub as usize).enumerate() {
            let start = section.address() + index as u64 * stub;
            let name = match slot_of(code, start).and_then(|slot| slots.get(&slot)) {
                Some(name) => format!("{name}@plt"),
                None => "plt".to_owned(),
            };
            let function = names.push(name);
            let end = Svma(start + code.len() as u64);
            ranges.push(FunctionRange { start: Svma(start), end, function, role: FunctionRole::Stub });
        }
    }
}

/// The address that a stub's `jmp *disp(%rip)` (ff 25, perhaps behind endbr64 or bnd) reads.
fn slot_of(code: &[u8], start: u64) -> Option<u64> {
    let at = code.windows(2).position(|pair| pair == [0xff, 0x25])?;
    let displacement = i32::from_le_bytes(code.get(at + 2..at + 6)?.try_into().ok()?);
    Some(start.wrapping_add(at as u64 + 6).wrapping_add_signed(i64::from(displacement)))
}

/// A name as people write it: Rust, then C++, else as it is.
pub fn demangle(name: &str) -> String {
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        return format!("{rust:#}");
    }
    if name.starts_with("_Z")
        && let Ok(symbol) = cpp_demangle::Symbol::new(name)
        && let Ok(readable) = symbol.demangle()
    {
        return readable;
    }
    name.to_owned()
}
