//! What code without an image costs is told, and whose it was.

use std::path::{Path, PathBuf};
use std::process::Command;

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-traces/samples/requests")
}

fn ptflow(home: &Path, verb: &str, args: &[&Path]) -> (String, serde_json::Value) {
    let report = home.join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_ptflow"))
        .arg(verb)
        .args(args)
        .arg("--report")
        .arg(&report)
        .env("HOME", home)
        .output()
        .expect("ptflow runs");
    let told = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.success(), "{told}");
    let report = std::fs::read(&report).expect("a report");
    (told, serde_json::from_slice(&report).expect("JSON"))
}

#[test]
fn a_missing_program_is_named_with_its_share() {
    let home = tempfile::tempdir().expect("a folder");
    let capture = sample().join("perf.data");
    let out = [home.path().join("out.edges"), home.path().join("out.txt")];
    for (verb, out) in ["profile", "convert"].iter().zip(&out) {
        let (told, report) = ptflow(home.path(), verb, &[&capture, Path::new("-o"), out]);
        let lost = report["lost"].as_array().expect("a list");
        let of_images = lost.iter().filter(|loss| loss["reason"] == "no_image");
        let bytes: u64 = of_images.map(|loss| loss["bytes"].as_u64().expect("a number")).sum();
        let costs = report["no_image"].as_array().expect("a list");
        assert_eq!(costs.len(), 1, "{costs:?}");
        assert!(costs[0]["image"].as_str().expect("a path").ends_with("/requests"), "{costs:?}");
        assert_eq!((&costs[0]["why"], costs[0]["bytes"].as_u64()), (&"not found".into(), Some(bytes)));
        let share = 100.0 * bytes as f64 / report["pt_bytes_in"].as_f64().expect("a number");
        assert!(share > 20.0 && told.contains(&format!("({share:.2} %)")), "{share}: {told}");
        // And where it was looked for.
        assert!(told.contains(".debug/.build-id/") && told.contains("--images"), "{told}");
    }
    let (told, report) = ptflow(home.path(), "profile", &[&capture, Path::new("--images"), &sample()]);
    assert_eq!((told.as_str(), report["no_image"].as_array().map(Vec::len)), ("", Some(0)));
}
