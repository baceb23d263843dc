//! A capture of 4 GiB: `info` looks at its records, not at the trace.

#[path = "../../perf-import/tests/kit/mod.rs"]
mod kit;

use kit::large;
use std::process::Command;

#[test]
fn what_is_in_four_gigabytes_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("perf.data");
    large::write(&path);
    // Of the processor's seconds, which do not depend on what else runs; to read the trace takes many more.
    let output = Command::new("sh")
        .args(["-c", "ulimit -t 2; exec \"$0\" info \"$1\"", env!("CARGO_BIN_EXE_ptflow")])
        .arg(&path)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{:?}: {told}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(told.contains("4295.0 MB in 4 streams"), "{told}");
}
