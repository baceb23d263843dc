//! Programs and libraries of the workspace, optimised, for tests that run them: cargo builds neither other packages' programs
//! nor dynamic libraries for a test. Other packages' tests take this file by its path.

use std::path::PathBuf;
use std::process::Command;

/// Builds what cargo's arguments choose, and says where cargo puts it.
pub fn build(chosen: &[&str]) -> PathBuf {
    // Test programs lie in TARGET/PROFILE/deps.
    let own = std::env::current_exe().expect("our own path");
    let target = own.ancestors().nth(3).expect("a target folder");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release"])
        .args(chosen)
        .arg("--target-dir")
        .arg(target)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "cargo builds {chosen:?}");
    target.join("release")
}

/// What the recorder consists of.
pub const RECORDER: [&str; 4] = ["-p", "ptflow-bench-traces", "-p", "ptflow-recorder-plugin"];
