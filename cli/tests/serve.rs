//! `convert --open`: the browser's side of it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

fn ask(port: u16, request: &str) -> (String, Vec<u8>) {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    connection.write_all(request.as_bytes()).expect("it reads");
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).expect("it answers");
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head") + 4;
    let body = answer.split_off(end);
    (String::from_utf8(answer).expect("text"), body)
}

#[test]
fn the_file_is_served_once_to_the_ui() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-traces/samples/requests");
    let folder = TempDir::new().expect("a folder");
    let out = folder.path().join("of two words.pftrace.gz");
    let mut child = Command::new(env!("CARGO_BIN_EXE_ptflow"))
        .arg("convert")
        .arg(sample.join("perf.data"))
        .arg("--images")
        .arg(&sample)
        .arg("-o")
        .arg(&out)
        .args(["--open", "--port", "0"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("ptflow runs");
    let lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let address = "ptflow: open https://ui.perfetto.dev/#!/?url=http://127.0.0.1:";
    let place = lines.map_while(Result::ok).find_map(|line| line.strip_prefix(address).map(str::to_owned));
    let place = place.expect("an address");
    let (port, name) = place.split_once('/').expect("a port and a name");
    assert_eq!(name, "trace.pftrace.gz");
    let port = port.parse().expect("a port");
    let allowed = "\r\nAccess-Control-Allow-Origin: https://ui.perfetto.dev\r\n";
    let (head, body) = ask(port, "GET /../../etc/passwd HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 404 ") && body.is_empty(), "{head}");
    let (head, _) =
        ask(port, "OPTIONS /trace.pftrace.gz HTTP/1.1\r\nOrigin: https://ui.perfetto.dev\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 204 ") && head.contains(allowed), "{head}");
    let (head, _) = ask(port, "POST /trace.pftrace.gz HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
    // Who goes away without a word does not end it.
    drop(TcpStream::connect(("127.0.0.1", port)).expect("it listens"));
    let (head, body) = ask(port, "GET /trace.pftrace.gz HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains(allowed), "{head}");
    let file = std::fs::read(&out).expect("the file");
    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", file.len())), "{head}");
    assert!(body == file);
    assert!(child.wait().expect("it ends").success());
}
