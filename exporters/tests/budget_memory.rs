//! A budget bounds memory, however many calls come and however deep. A test program of its own: it asks the kernel for the
//! most memory that the process ever had.

use ptflow_exporters::budget::{Budget, Limits};
use ptflow_exporters::depth::DepthGuard;
use ptflow_exporters::perfetto::PerfettoWriter;
use ptflow_exporters::timeline::Category;
use std::io;
use std::sync::{Mutex, PoisonError};

const SLICES: u64 = 100_000;

/// One test at a time: memory is the process's.
static ALONE: Mutex<()> = Mutex::new(());

fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the peak");
    line.trim().strip_suffix(" kB").and_then(|kb| kb.trim().parse::<u64>().ok()).expect("a number") << 10
}

/// A recursion 100,000 deep, again and again: what is too deep to be shown takes no room from what is not, is told of on the
/// deepest slice that is shown, and memory is that of one recursion.
fn recurse(rounds: u64) -> io::Result<()> {
    const DEPTH: u64 = 100_000;
    const SHOWN: u64 = 511;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let timeline = Box::new(DepthGuard::new(Box::new(PerfettoWriter::new(io::sink()))));
    let limits = Limits { slices: Some(rounds * SHOWN), ..Limits::default() };
    let mut budget = Budget::new(timeline, limits).with_work();
    budget.process(1, "")?;
    let track = budget.thread(1, 1, "")?;
    let name = budget.name("f", Category::Function);
    let before = peak();
    for round in 0..rounds {
        let start = round * 3 * DEPTH;
        for level in 0..DEPTH {
            budget.begin(track, start + level, name)?;
        }
        for level in 0..DEPTH {
            budget.end(track, start + DEPTH + level)?;
        }
    }
    let folding = budget.finish()?;
    assert_eq!((folding.slices, folding.min_ns), (rounds * SHOWN, 0));
    assert_eq!((folding.folded, folding.deep), (rounds * (DEPTH - SHOWN), rounds * (DEPTH - SHOWN)));
    assert_eq!(folding.outside.calls, 0);
    let said = folding.in_words().expect("calls were folded");
    assert!(said.ends_with("those deeper than 511 levels"), "{said}");
    // Lists of what is kept and of one recursion, with what was executed, twice while they grow; and the writer's buffer.
    let used = peak().saturating_sub(before);
    assert!(used < 2 * 64 * (rounds * SHOWN + 2 * DEPTH) + (8 << 20), "{used} bytes");
    Ok(())
}

#[test]
fn deep_recursion() -> io::Result<()> {
    recurse(30)
}

/// `cargo test --release -p ptflow-exporters --test budget_memory -- --ignored`: 600 million begins and ends.
#[test]
#[ignore = "a minute without optimisation"]
fn deep_recursion_some_thousand_times() -> io::Result<()> {
    recurse(3_000)
}

#[test]
fn memory_is_bounded_by_the_budget() -> io::Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let timeline = Box::new(DepthGuard::new(Box::new(PerfettoWriter::new(io::sink()))));
    let mut budget = Budget::new(timeline, Limits { slices: Some(SLICES), ..Limits::default() });
    budget.process(1, "")?;
    let track = budget.thread(1, 1, "")?;
    let name = budget.name("f", Category::Function);
    let before = peak();
    let mut now = 0;
    let mut calls = 0;
    // Wide: leaves of all durations. Deep: thousands of levels, again and again, each a little longer than the one above. Both:
    // leaves at the bottom of a deep stack.
    for round in 0..60 {
        let depth = if round % 2 == 0 { 1 } else { 20_000 };
        for _ in 0..depth {
            budget.begin(track, now, name)?;
            now += 1;
        }
        for leaf in 0..50_000 {
            budget.begin(track, now, name)?;
            now += leaf * leaf % 1_000 * (round + 1);
            budget.end(track, now)?;
        }
        for _ in 0..depth {
            now += 1;
            budget.end(track, now)?;
        }
        calls += depth + 50_000;
    }
    let folding = budget.finish()?;
    // Of the deep stacks only 511 levels are shown, though all that is kept of them counts.
    assert!(folding.slices <= SLICES && folding.slices > 1_000, "{}", folding.slices);
    assert_eq!(folding.slices + folding.folded, calls);
    // Two budgets of slices of 40 bytes, twice that while a list of them grows, and the writer's buffer.
    let used = peak() - before;
    assert!(used < 2 * 2 * 48 * SLICES + (4 << 20), "{used} bytes for {calls} calls");
    Ok(())
}
