//! Names of functions, as binutils tell them of programs made here.

mod kit;

use ptflow_decoder::units::Svma;
use ptflow_perf_import::symbols::{SymbolTable, demangle};
use std::collections::BTreeMap;
use std::path::Path;

const SOURCE: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
__attribute__((noinline)) int strong(int x) { return x * 3 + 1; }
int weak_alias(int) __attribute__((weak, alias("strong")));
int __underscored(int) __attribute__((alias("strong")));
static int one(int x) { return x + 1; }
static int two(int x) { return x + 2; }
static int (*resolve(void))(int) { return getenv("TWO") ? two : one; }
int chosen(int) __attribute__((ifunc("resolve")));
__asm__(".text\n.type sizeless, @function\nsizeless: nop\nnop\nret\n"
        "untyped: nop\nret\n"
        ".globl after\n.type after, @function\nafter: ret\n.size after, 1\n");
extern int sizeless(void), untyped(void), after(void);
int main(int argc, char **argv) {
    puts(argv[0]);
    return strong(argc) + chosen(argc) + (int)strlen(argv[0]) + sizeless() + untyped() + after();
}
"#;

/// Compiles the program; `None` where that is not possible here.
fn program(folder: &Path, flags: &str) -> Option<Vec<u8>> {
    std::fs::write(folder.join("program.c"), SOURCE).unwrap();
    kit::output("sh", &["-c", &format!("cc -O1 {flags} -o program program.c")], folder)?;
    Some(std::fs::read(folder.join("program")).unwrap())
}

/// The stubs as objdump names them: `0000000000001030 <puts@plt>:`.
fn stubs_by_objdump(folder: &Path) -> Option<BTreeMap<u64, String>> {
    let command = "for s in .plt .plt.sec .plt.got; do objdump -d -j $s program 2>/dev/null; done; true";
    let text = kit::output("sh", &["-c", command], folder)?;
    let stub = |line: &str| {
        let (address, name) = line.strip_suffix(">:")?.split_once(" <")?;
        name.ends_with("@plt").then_some(())?;
        Some((u64::from_str_radix(address, 16).unwrap(), name.to_owned()))
    };
    Some(text.lines().filter_map(stub).collect())
}

/// Addresses by name, as nm tells them.
fn addresses_by_nm(folder: &Path) -> Option<BTreeMap<String, u64>> {
    let text = kit::output("nm", &["program"], folder)?;
    let symbol = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((words.nth(1)?.to_owned(), address))
    };
    Some(text.lines().filter_map(symbol).collect())
}

#[test]
fn names_are_those_of_binutils() {
    for flags in
        ["", "-fcf-protection=full -Wl,-z,lazy", "-Wl,-z,now -fno-plt", "-static", "-no-pie -Wl,-z,lazy"]
    {
        let folder = tempfile::tempdir().unwrap();
        let Some(bytes) = program(folder.path(), flags) else { continue };
        let Some((stubs, nm)) = stubs_by_objdump(folder.path()).zip(addresses_by_nm(folder.path())) else {
            return;
        };
        let table = SymbolTable::read(&bytes, None);
        let name = |address: u64| table.lookup(Svma(address)).map(|(_, function)| function.name());
        for (address, stub) in &stubs {
            // Of an IFUNC objdump tells the resolver's address: "*ABS*+0x1180@plt".
            let resolver = stub.strip_prefix("*ABS*+0x").and_then(|rest| rest.strip_suffix("@plt"));
            let resolver = resolver.map(|address| u64::from_str_radix(address, 16).unwrap());
            let ours = name(*address).unwrap_or_default();
            match resolver {
                None => assert_eq!(ours, *stub, "{flags}"),
                Some(resolver) => {
                    let own = ours.strip_suffix("@plt").unwrap_or_else(|| panic!("{flags}: {ours}"));
                    assert_eq!(nm.get(own), Some(&resolver), "{flags}: {stub} is {ours}");
                }
            }
        }
        println!("{flags}: {} stubs", stubs.len());
        // Of the names of one address: a strong one, with the fewest underscores; the others are its aliases.
        let strong = nm["strong"];
        assert_eq!((nm["weak_alias"], nm["__underscored"]), (strong, strong));
        assert_eq!(name(strong).as_deref(), Some("strong"), "{flags}");
        let aliases: Vec<&str> = table.aliases(Svma(strong)).collect();
        assert_eq!(aliases, ["__underscored", "weak_alias"], "{flags}");
        // A function without a size ends where the next symbol is, whatever kind that one is.
        for (symbol, len) in [("sizeless", 3), ("untyped", 2), ("after", 1)] {
            for offset in 0..len {
                assert_eq!(name(nm[symbol] + offset).as_deref(), Some(symbol), "{flags}");
            }
        }
        // The symbol of an IFUNC is its resolver's; what it chooses has a name of its own.
        let at_resolver = name(nm["chosen"]);
        assert!(matches!(at_resolver.as_deref(), Some("chosen" | "resolve")), "{flags}: {at_resolver:?}");
        let mut names = table.functions().iter().map(|function| function.name());
        let stub = names.any(|name| name == "chosen@plt" || name == "resolve@plt");
        assert_eq!(stub, !flags.contains("-fno-plt"), "{flags}: the IFUNC's stub");
        assert_eq!(name(nm["one"]).as_deref(), Some("one"), "{flags}");
        assert_eq!(name(nm["main"]).as_deref(), Some("main"), "{flags}");
    }
}

/// Mangled and readable, by `c++filt` and by the examples of Rust's RFC 2603; Go's names are readable as they are.
#[test]
fn readable_names() {
    for (mangled, readable) in [
        ("_ZN3foo3barEv", "foo::bar()"),
        ("_ZNSt6vectorIiSaIiEE9push_backEOi", "std::vector<int, std::allocator<int> >::push_back(int&&)"),
        ("_ZN4core3fmt9Formatter3pad17h0123456789abcdefE", "core::fmt::Formatter::pad"),
        ("_RNvNtCs1234_7mycrate3foo3bar", "mycrate::foo::bar"),
        ("main.(*Server).Serve", "main.(*Server).Serve"),
        ("_Znonsense", "_Znonsense"),
    ] {
        assert_eq!(demangle(mangled), readable);
    }
}
