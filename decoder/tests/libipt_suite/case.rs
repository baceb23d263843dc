//! A compiled case of the suite.

use ptflow_decoder::config::{CpuModel, Filter, PtConfig};
use ptflow_decoder::units::Ip;
use std::path::Path;

/// One program, its trace, and what is expected of it.
pub struct Case {
    /// Without the CPU.
    pub name: String,
    pub config: PtConfig,
    /// Where the program lies.
    pub origin: u64,
    pub code: Vec<u8>,
    pub trace: Vec<u8>,
    /// What ptdump and ptxed print.
    pub ptdump: Option<String>,
    pub ptxed: Option<String>,
    /// Their options.
    pub ptdump_options: Vec<String>,
    pub ptxed_options: Vec<String>,
}

impl Case {
    pub fn read(folder: &Path) -> Self {
        let files: Vec<_> =
            std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a file").path()).collect();
        let find = |is: &dyn Fn(&str) -> bool| {
            files.iter().find(|path| is(&path.file_name().unwrap_or_default().to_string_lossy()))
        };
        let bytes = |suffix: &str| {
            let path = find(&|name| name.ends_with(suffix)).expect("a file of each kind");
            std::fs::read(path).expect("bytes")
        };
        let expected = |tool: &str| {
            let path = find(&|name| name.contains(&format!("-{tool}")) && name.ends_with(".exp"))?;
            std::fs::read_to_string(path).ok()
        };
        let source = String::from_utf8_lossy(&bytes(".ptt")).into_owned();
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let (name, cpu) = name.split_once('@').map_or((&*name, None), |(name, cpu)| (name, Some(cpu)));
        let ptxed_options = options(&source, "ptxed");
        let mut config = PtConfig { event_trace: true, ..PtConfig::default() };
        config.cpu = cpu.and_then(|cpu| {
            let mut numbers = cpu.split('_').map(str::parse::<u16>);
            let (family, model) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
            Some(CpuModel { family, model, stepping: 1 })
        });
        let filter = ["--filter:addr0_a", "--filter:addr0_b"].map(|key| number_behind(&ptxed_options, key));
        if let [Some(first), Some(last)] = filter {
            config.filters.push(Filter { start: Ip(first), end: Ip(last + 1), stop: false });
        }
        let origin = source.lines().find_map(|line| line.trim().strip_prefix("org ")).and_then(number);
        Self {
            name: name.to_owned(),
            config,
            origin: origin.unwrap_or(0),
            code: bytes(".bin"),
            trace: bytes(".pt"),
            ptdump: expected("ptdump"),
            ptxed: expected("ptxed"),
            ptdump_options: options(&source, "ptdump"),
            ptxed_options,
        }
    }
}

/// The words of a tool's `opt:` lines.
fn options(source: &str, tool: &str) -> Vec<String> {
    let key = format!("opt:{tool}");
    let lines =
        source.lines().filter_map(|line| line.trim_start().strip_prefix(';')?.trim().strip_prefix(&key));
    lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
}

/// The number behind an option.
pub fn number_behind(options: &[String], key: &str) -> Option<u64> {
    let at = options.iter().position(|option| option == key)?;
    number(options.get(at + 1)?)
}

fn number(word: &str) -> Option<u64> {
    let word = word.split_whitespace().next()?;
    word.strip_prefix("0x").map_or_else(|| word.parse().ok(), |digits| u64::from_str_radix(digits, 16).ok())
}
