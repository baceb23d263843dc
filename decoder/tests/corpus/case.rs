//! A text of the corpus, read.

use ptflow_decoder::config::{CpuModel, Filter, PtConfig};
use ptflow_decoder::insn;
use ptflow_decoder::packet::ExecMode;
use ptflow_decoder::packet::encoder::encode;
use ptflow_decoder::packet::lexer::{BlockContext, LexError, lex};
use ptflow_decoder::units::Ip;
use std::fmt::Write as _;

/// One line of the listing.
pub struct Line {
    pub addr: u64,
    pub bytes: Vec<u8>,
}

/// One line of the trace: bytes, and the packet that they are.
struct TraceLine {
    bytes: Vec<u8>,
    packet: String,
}

/// One text.
pub struct Case {
    pub config: PtConfig,
    /// Addresses of 32-bit code.
    mode16: std::ops::Range<u64>,
    mode32: std::ops::Range<u64>,
    /// Named addresses, in order of the listing.
    pub labels: Vec<(String, u64)>,
    pub listing: Vec<Line>,
    trace: Vec<TraceLine>,
    /// Expected lines.
    pub flow: Vec<String>,
    /// Rows of the profile that the flow has no line for.
    pub rows: Vec<String>,
    pub losses: Vec<String>,
    pub times: Vec<String>,
    /// The stream ends with the trace: no padding behind.
    pub ends: bool,
    /// Why libipt is no judge here.
    #[allow(dead_code, reason = "only the oracle asks")]
    pub libipt: Option<String>,
}

const SECTIONS: [&str; 5] = ["code", "trace", "flow", "losses", "times"];

impl Case {
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut case = Self {
            config: PtConfig::default(),
            mode16: 0..0,
            mode32: 0..0,
            labels: Vec::new(),
            listing: Vec::new(),
            trace: Vec::new(),
            flow: Vec::new(),
            rows: Vec::new(),
            losses: Vec::new(),
            ends: false,
            times: Vec::new(),
            libipt: None,
        };
        let mut section = "";
        for (number, line) in text.lines().enumerate() {
            let line = line.split_once(" #").map_or(line, |(line, _)| line).trim_end();
            let words: Vec<&str> = line.split_whitespace().collect();
            let result = match words[..] {
                [] => Some(()),
                [head] if SECTIONS.contains(&head) && !line.starts_with(' ') => {
                    section = SECTIONS[SECTIONS.iter().position(|name| *name == head).unwrap_or(0)];
                    Some(())
                }
                ["set", key, ..] if section.is_empty() && !line.starts_with(' ') => {
                    case.set(key, words.get(2..).unwrap_or(&[]))
                }
                _ if section.is_empty() => Some(()),
                _ => case.line(section, &words),
            };
            result.ok_or_else(|| format!("line {}: not understood: {line}\n", number + 1))?;
        }
        if case.trace.is_empty() || case.flow.is_empty() {
            Err("no trace or no flow\n".into())
        } else {
            Ok(case)
        }
    }

    fn set(&mut self, key: &str, words: &[&str]) -> Option<()> {
        let config = &mut self.config;
        match (key, words) {
            ("cpu", [cpu]) => {
                let (family, model) = cpu.split_once('/')?;
                let (family, model) = (hex(family)? as u16, hex(model)? as u16);
                config.cpu = Some(CpuModel { family, model, stepping: 1 });
            }
            ("filter" | "stop", [range]) => {
                let (start, end) = range.split_once("..")?;
                config.filters.push(Filter {
                    start: Ip(hex(start)?),
                    end: Ip(hex(end)?),
                    stop: key == "stop",
                });
            }
            ("end", []) => self.ends = true,
            ("event-trace", []) => config.event_trace = true,
            ("mtc-period", [period]) => (config.mtc, config.mtc_period) = (true, period.parse().ok()?),
            ("tsc-per-ctc", [ratio]) => {
                let (tsc, ctc) = ratio.split_once('/')?;
                config.tsc_ctc_ratio = Some((tsc.parse().ok()?, ctc.parse().ok()?));
            }
            ("max-nonturbo", [ratio]) => config.max_nonturbo_ratio = ratio.parse().ok()?,
            ("mode16" | "mode32", [range]) => {
                let (start, end) = range.split_once("..")?;
                let code = if key == "mode16" { &mut self.mode16 } else { &mut self.mode32 };
                *code = hex(start)?..hex(end)?;
            }
            ("libipt", ["differs:", ..]) => self.libipt = Some(words[1..].join(" ")),
            _ => return None,
        }
        Some(())
    }

    fn line(&mut self, section: &str, words: &[&str]) -> Option<()> {
        match section {
            "code" => {
                let label = words[0].strip_suffix(':');
                let rest = &words[usize::from(label.is_some())..];
                let addr = hex(rest.first()?)?;
                if let Some(label) = label {
                    self.labels.push((label.to_owned(), addr));
                }
                let (bytes, _) = leading_bytes(&rest[1..])?;
                self.listing.push(Line { addr, bytes });
            }
            "trace" => {
                let (bytes, words) = leading_bytes(words)?;
                self.trace.push(TraceLine { bytes, packet: words.join(" ") });
            }
            "flow" if words[0] == "row" => self.rows.push(words.join(" ")),
            "flow" => self.flow.push(words.join(" ")),
            "losses" => self.losses.push(words.join(" ")),
            _ => self.times.push(words.join(" ")),
        }
        Some(())
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.trace.iter().flat_map(|line| &line.bytes).copied().collect()
    }

    pub fn packets(&self) -> usize {
        self.trace.len()
    }

    /// The address that a word of the text means: a label, or digits.
    pub fn address(&self, word: &str) -> Option<u64> {
        self.labels.iter().find(|(label, _)| label == word).map(|(_, addr)| *addr).or_else(|| hex(word))
    }

    /// The addresses of all instructions that the flow runs through.
    pub fn instructions(&self) -> Vec<u64> {
        let next = |addr: u64| {
            self.listing.iter().find(|line| line.addr == addr).map(|line| addr + line.bytes.len() as u64)
        };
        let (mut all, mut here) = (Vec::new(), None);
        for line in &self.flow {
            let words: Vec<&str> = line.split_whitespace().collect();
            let count: usize = words[0].parse().unwrap_or(0);
            while all.len() < count {
                let Some(addr) = here else { break };
                all.push(addr);
                here = next(addr);
            }
            match words[1..] {
                ["sync" | "on", at, ..] => here = self.address(at),
                ["off", ..] => {}
                [_, _, "->", to, ..] => here = self.address(to),
                _ => {}
            }
        }
        all
    }

    pub fn check_packets(&self) -> String {
        let mut complaint = String::new();
        let bytes = self.bytes();
        let (mut at, mut context) = (0, BlockContext::None);
        for line in &self.trace {
            let len = line.bytes.len();
            match (lex(&bytes[at..], &mut context), line.packet.as_str()) {
                (Err(LexError::BadPacket), "bad") | (Err(LexError::Truncated), "torn") => {}
                (Ok((packet, length)), text) => {
                    let name = packet.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
                    if length != len || name != text {
                        let _ =
                            writeln!(complaint, "at {at:#x}: {name}, {length} bytes; expected {text}, {len}");
                    }
                    let mut encoded = Vec::new();
                    encode(&packet, &mut encoded);
                    if encoded != line.bytes && !text.starts_with("cyc") {
                        let _ = writeln!(complaint, "at {at:#x}: {text} is encoded as {encoded:02x?}");
                    }
                }
                (Err(error), text) => {
                    let _ = writeln!(complaint, "at {at:#x}: {error:?}; expected {text}");
                }
            }
            at += len;
        }
        complaint
    }

    /// The mode that the code at an address runs in.
    pub fn mode(&self, addr: u64) -> ExecMode {
        match addr {
            _ if self.mode16.contains(&addr) => ExecMode::Bits16,
            _ if self.mode32.contains(&addr) => ExecMode::Bits32,
            _ => ExecMode::Bits64,
        }
    }

    pub fn check_listing(&self) -> String {
        let mut complaint = String::new();
        for line in &self.listing {
            let mode = self.mode(line.addr);
            let len = insn::decode(&line.bytes, line.addr, mode).map(|insn| usize::from(insn.len));
            if len != Some(line.bytes.len()) {
                let _ =
                    writeln!(complaint, "{:x}: {len:?} bytes long; expected {}", line.addr, line.bytes.len());
            }
        }
        // The flow's counts are those of a walk through the listing.
        let walked = self.instructions().len();
        if self.flow.last().and_then(|line| line.split(' ').next()?.parse().ok()) != Some(walked) {
            let _ = writeln!(complaint, "the listing has {walked} instructions on the flow's way");
        }
        complaint
    }
}

fn hex(word: &str) -> Option<u64> {
    u64::from_str_radix(word, 16).ok()
}

/// The bytes that a line begins with, two digits each; `xN` behind them repeats them.
fn leading_bytes<'w, 't>(words: &'w [&'t str]) -> Option<(Vec<u8>, &'w [&'t str])> {
    let is_byte = |word: &&&str| word.len() == 2 && hex(word).is_some();
    let count = words.iter().take_while(is_byte).count();
    let mut bytes: Vec<u8> = words[..count].iter().filter_map(|word| Some(hex(word)? as u8)).collect();
    let mut rest = &words[count..];
    if let Some(times) = rest.first().and_then(|word| word.strip_prefix('x')?.parse().ok()) {
        bytes = bytes.repeat(times);
        rest = &rest[1..];
    }
    (!bytes.is_empty()).then_some((bytes, rest))
}
