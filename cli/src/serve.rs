//! A file for Perfetto's UI: served on this machine until it was fetched once.
//!
//! The UI runs in the browser and fetches the file itself. Its content security policy lets it connect to 127.0.0.1:9001
//! (`open_trace_in_ui` of Perfetto's tools serves there, too), and the browser lets it read what names it as allowed.

use anyhow::Context as _;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

/// The port that the UI may connect to.
pub const PORT: u16 = 9001;

const UI: &str = "https://ui.perfetto.dev";
/// A request's head is no longer than this.
const MOST_HEAD: usize = 16 << 10;
/// Who says nothing for so long is let go.
const PATIENCE: Duration = Duration::from_secs(10);

/// Says the address that opens the file, and serves it until it was fetched whole.
pub fn serve(path: &Path, port: u16) -> anyhow::Result<()> {
    let cannot = || format!("cannot serve on 127.0.0.1:{port}; is another `--open` waiting there?");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(cannot)?;
    let port = listener.local_addr().with_context(cannot)?.port();
    // Of any name, the way in which it would have to be quoted is one more thing to go wrong: only the ending counts.
    let ending = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('.'));
    let name = ending.map_or("trace".to_owned(), |(_, ending)| format!("trace.{ending}"));
    eprintln!("ptflow: serving it until it is fetched; Ctrl-C ends that");
    // The last word: who reads it may read no further.
    eprintln!("ptflow: open {UI}/#!/?url=http://127.0.0.1:{port}/{name}");
    for connection in listener.incoming() {
        // One that fails is that browser's affair; it may ask again.
        if connection.and_then(|connection| answer(connection, path, &name)).unwrap_or(false) {
            return Ok(());
        }
    }
    Ok(())
}

/// True when the file was sent.
fn answer(mut to: TcpStream, path: &Path, name: &str) -> io::Result<bool> {
    to.set_read_timeout(Some(PATIENCE))?;
    to.set_write_timeout(Some(PATIENCE))?;
    let head = head(&mut to)?;
    let mut words = head.split(' ');
    let (method, asked) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let allowed = format!(
        "Access-Control-Allow-Origin: {UI}\r\nAccess-Control-Allow-Private-Network: true\r\nConnection: close\r\n"
    );
    let is_it = asked.strip_prefix('/') == Some(name);
    let status = match method {
        "OPTIONS" => "204 No Content",
        "GET" | "HEAD" if is_it => "200 OK",
        "GET" | "HEAD" => "404 Not Found",
        _ => "405 Method Not Allowed",
    };
    if status != "200 OK" {
        let methods = "Access-Control-Allow-Methods: GET, HEAD, OPTIONS\r\nContent-Length: 0\r\n";
        write!(to, "HTTP/1.1 {status}\r\n{allowed}{methods}\r\n")?;
        return Ok(false);
    }
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let what = "Content-Type: application/octet-stream\r\nCache-Control: no-cache\r\n";
    write!(to, "HTTP/1.1 {status}\r\n{allowed}{what}Content-Length: {length}\r\n\r\n")?;
    if method == "HEAD" {
        return Ok(false);
    }
    let sent = io::copy(&mut file, &mut to)?;
    to.flush()?;
    Ok(sent == length)
}

/// What stands before the first empty line.
fn head(from: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut some = [0; 1024];
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") && head.len() < MOST_HEAD {
        match from.read(&mut some)? {
            0 => break,
            count => head.extend_from_slice(&some[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
