//! `ptflow info`.

use crate::args::{Common, InfoArgs};
use crate::load::{self, Loaded};
use anyhow::Context as _;
use ptflow_decoder::plan::plan;
use ptflow_perf_import::PerfFile;
use ptflow_perf_import::images::Status;
use ptflow_perf_import::record::{branch_sample_type, kind};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;

#[derive(Serialize, Debug)]
struct Info {
    file: String,
    form: String,
    file_bytes: u64,
    cpu: Option<String>,
    cpuid: Option<String>,
    hostname: Option<String>,
    kernel: Option<String>,
    command: Option<String>,
    /// `None` where there is no Intel PT.
    settings: Option<Settings>,
    branch_stacks: Option<BranchStacks>,
    pt_bytes: u64,
    first_pt_ns: Option<u64>,
    record_time_ns: Option<(u64, u64)>,
    switches: Option<String>,
    streams: Vec<Stream>,
    processes: Vec<Process>,
    images: Vec<Image>,
    losses: Vec<Loss>,
    notes: Vec<String>,
    lost_records: u64,
}

#[derive(Serialize, Debug)]
struct BranchStacks {
    samples: u64,
    entries: u64,
    depth: u64,
    /// What branches were asked for, in the words of perf's `-j`.
    branches: Vec<&'static str>,
}

#[derive(Serialize, Debug)]
struct Settings {
    tsc: bool,
    mtc_period: Option<u8>,
    cyc: bool,
    ret_compression: bool,
    branches: bool,
    tsc_ctc_ratio: Option<(u32, u32)>,
    max_nonturbo_ratio: u8,
    per_cpu: bool,
    snapshot: bool,
    /// Samples that brought trace (`--aux-sample`).
    aux_samples: u64,
    filter: String,
}

#[derive(Serialize, Debug)]
struct Stream {
    name: String,
    pid: Option<u32>,
    bytes: u64,
    pieces: usize,
}

#[derive(Serialize, Debug)]
struct Process {
    pid: u32,
    name: String,
    threads: Vec<(u32, String)>,
}

#[derive(Serialize, Debug)]
struct Image {
    path: String,
    build_id: Option<String>,
    status: &'static str,
    kernel: bool,
    found: Option<String>,
    symbols: Option<String>,
    looked: Vec<String>,
}

#[derive(Serialize, Debug)]
struct Loss {
    stream: String,
    reason: &'static str,
    count: u64,
    bytes: u64,
}

/// Runs the verb.
pub fn run(args: &InfoArgs) -> anyhow::Result<()> {
    let file = load::open(&args.common)?;
    let loaded = Loaded::silent(&file, &args.common)?;
    let info = gather(&args.common, &file, &loaded);
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &info).context("cannot write to standard output")?;
        writeln!(out)?;
    } else {
        print(&info, &mut out)?;
    }
    Ok(())
}

fn gather(args: &Common, file: &PerfFile, loaded: &Loaded<'_>) -> Info {
    let capture = &loaded.capture;
    let config = &capture.config;
    let outside = plan(loaded.streams().map(|stream| &stream.trace), usize::MAX);
    let mut losses = Vec::new();
    for (stream, ledger) in loaded.streams().zip(&outside.ledgers) {
        let mut by_reason = BTreeMap::new();
        for loss in &ledger.losses {
            let sum = by_reason.entry(loss.reason).or_insert((0, 0));
            *sum = (sum.0 + 1, sum.1 + loss.bytes);
        }
        losses.extend(by_reason.into_iter().map(|(reason, (count, bytes))| Loss {
            stream: stream.name(),
            reason: reason.name(),
            count,
            bytes,
        }));
    }
    let first_pt = loaded.first_pt();
    let hex = |id: &[u8]| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let images = loaded.store.files().iter().map(|image| {
        let mapped = &image.mapped;
        let build_id = image.build_id.clone().or_else(|| mapped.build_id.as_deref().map(hex));
        let (status, found, looked) = match &image.status {
            Status::Found(path) => ("found", Some(path.display().to_string()), Vec::new()),
            Status::Missing { looked } => {
                ("missing", None, looked.iter().map(|path| path.display().to_string()).collect())
            }
            Status::Mismatch { path, found } => {
                ("other build", Some(format!("{} is build {found}", path.display())), Vec::new())
            }
            Status::NoFile => ("no file", None, Vec::new()),
        };
        let symbols = image.debug_path().map(|path| path.display().to_string());
        let (path, kernel) = (mapped.path.clone(), mapped.kernel);
        Image { path, build_id, status, kernel, found, symbols, looked }
    });
    let lost = [kind::LOST, kind::LOST_SAMPLES, kind::AUXTRACE_ERROR];
    Info {
        file: args.capture.display().to_string(),
        form: form(args, file, loaded),
        file_bytes: file.len(),
        cpu: capture.machine.cpudesc.clone(),
        cpuid: capture.machine.cpuid.clone(),
        hostname: capture.machine.hostname.clone(),
        kernel: capture.machine.osrelease.clone(),
        command: capture.machine.cmdline.clone(),
        settings: (!loaded.is_branch_stacks_only()).then(|| Settings {
            tsc: config.tsc,
            mtc_period: config.mtc.then_some(config.mtc_period),
            cyc: config.cyc,
            ret_compression: config.ret_compression,
            branches: config.branches,
            tsc_ctc_ratio: config.tsc_ctc_ratio,
            max_nonturbo_ratio: config.max_nonturbo_ratio,
            per_cpu: capture.info.per_cpu,
            snapshot: capture.info.snapshot,
            aux_samples: capture.aux_samples,
            filter: capture.info.filter.clone(),
        }),
        branch_stacks: branch_stacks(file, loaded),
        pt_bytes: loaded.bytes(),
        first_pt_ns: first_pt.and_then(|tsc| config.time.map(|time| time.to_ns(tsc).0)),
        record_time_ns: capture.time,
        switches: capture.info.per_cpu.then(|| switches(loaded)),
        streams: loaded
            .streams()
            .map(|stream| Stream {
                name: stream.name(),
                pid: stream.pid.map(|pid| pid.0),
                bytes: stream.trace.len(),
                pieces: stream.trace.pieces.len(),
            })
            .collect(),
        processes: capture
            .processes
            .iter()
            .map(|(pid, process)| Process {
                pid: pid.0,
                name: process.comm.clone(),
                threads: process.threads.iter().map(|(tid, name)| (tid.0, name.clone())).collect(),
            })
            .collect(),
        images: images.collect(),
        losses,
        notes: capture.notes.clone(),
        lost_records: lost.iter().filter_map(|kind| capture.records.get(kind)).sum(),
    }
}

impl Settings {
    fn words(&self) -> Vec<String> {
        let s = self;
        let mut settings = Vec::new();
        settings.push(if s.tsc { "tsc".to_owned() } else { "no time".to_owned() });
        settings.extend(s.mtc_period.map(|period| format!("mtc (period {period})")));
        settings.extend(s.cyc.then(|| "cyc".to_owned()));
        settings.push(if s.ret_compression { "ret compression" } else { "no ret compression" }.to_owned());
        settings.push(if s.per_cpu { "a stream a CPU" } else { "a stream a thread" }.to_owned());
        settings.extend(s.snapshot.then(|| "snapshots".to_owned()));
        settings.extend((s.aux_samples > 0).then(|| format!("{} AUX samples", s.aux_samples)));
        settings.extend((!s.branches).then(|| "NO BRANCHES".to_owned()));
        settings.extend((!s.filter.is_empty()).then(|| format!("filter {}", s.filter)));
        settings
    }
}

/// What kind of capture it is.
fn form(args: &Common, file: &PerfFile, loaded: &Loaded<'_>) -> String {
    let mut form = match () {
        () if load::bundled(&args.capture).is_some() => "bundle",
        () if file.path().is_dir() => "perf.data directory",
        () if file.is_pipe() => "stream of a pipe",
        () => "perf.data file",
    }
    .to_owned();
    let compressed = [kind::COMPRESSED, kind::COMPRESSED2].iter();
    if compressed.filter_map(|kind| loaded.capture.records.get(kind)).sum::<u64>() > 0 {
        form.push_str(", compressed");
    }
    if file.kernel().is_some() {
        form.push_str(", with kcore");
    }
    form
}

fn branch_stacks(file: &PerfFile, loaded: &Loaded<'_>) -> Option<BranchStacks> {
    let sums = loaded.capture.branch_stacks;
    let asked =
        file.events().iter().map(|event| event.attr.branch_sample_type).fold(0, |all, bits| all | bits);
    (sums.samples > 0).then(|| BranchStacks {
        samples: sums.samples,
        entries: sums.entries,
        depth: sums.depth,
        branches: branch_sample_type::names(asked),
    })
}

/// By what the threads of CPUs are told apart.
fn switches(loaded: &Loaded<'_>) -> String {
    let capture = &loaded.capture;
    let count = |kind: u32| capture.records.get(&kind).copied().unwrap_or(0);
    let by = [
        (count(kind::SWITCH_CPU_WIDE), "SWITCH_CPU_WIDE records"),
        (count(kind::SWITCH), "SWITCH records"),
        (capture.sched_switches, "sched:sched_switch samples"),
        (count(kind::ITRACE_START), "ITRACE_START records"),
    ];
    let by: Vec<String> =
        by.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    match by.is_empty() {
        true => "no record tells who ran: record with --switch-events".to_owned(),
        false => by.join(", "),
    }
}

fn print(info: &Info, out: &mut impl Write) -> std::io::Result<()> {
    let line = |out: &mut dyn Write, key: &str, value: &str| writeln!(out, "{key:<12}{value}");
    let seconds = |ns: u64| format!("{}.{:09} s", ns / 1_000_000_000, ns % 1_000_000_000);
    let or = |value: &Option<String>| value.clone().unwrap_or_else(|| "not known".to_owned());
    line(out, "file", &format!("{}, {}, {}", info.file, info.form, size(info.file_bytes)))?;
    line(out, "CPU", &format!("{} ({})", or(&info.cpu), or(&info.cpuid)))?;
    line(out, "recorded", &format!("{} on {}", or(&info.command), or(&info.kernel)))?;
    if let Some(s) = &info.settings {
        line(out, "Intel PT", &s.words().join(", "))?;
        line(out, "trace", &format!("{} in {} streams", size(info.pt_bytes), info.streams.len()))?;
    }
    if let Some(b) = &info.branch_stacks {
        let sums = format!("{} samples, {} entries, at most {} each", b.samples, b.entries, b.depth);
        line(out, "LBR", &format!("{sums}; branches asked for: {}", b.branches.join(",")))?;
    }
    if let Some(switches) = &info.switches {
        line(out, "threads by", switches)?;
    }
    if let Some(first) = info.first_pt_ns {
        line(out, "first PT", &seconds(first))?;
    }
    if let Some((from, to)) = info.record_time_ns {
        line(out, "records", &format!("{} to {}", seconds(from), seconds(to)))?;
    }
    for stream in &info.streams {
        line(out, "stream", &format!("{}: {}", stream.name, size(stream.bytes)))?;
    }
    for process in &info.processes {
        let threads: Vec<String> =
            process.threads.iter().map(|(tid, name)| format!("{tid} {name}")).collect();
        line(out, "process", &format!("{} {}: {}", process.pid, process.name, threads.join(", ")))?;
    }
    print_images(info, out)?;
    for loss in &info.losses {
        let Loss { stream, reason, count, bytes } = loss;
        let times = if *count == 1 { "once".to_owned() } else { format!("{count} times") };
        line(out, "lost", &format!("{stream}: {reason} {times}, {}", size(*bytes)))?;
    }
    if info.lost_records > 0 {
        line(out, "lost", &format!("{} records tell of lost events", info.lost_records))?;
    }
    for note in &info.notes {
        line(out, "note", note)?;
    }
    Ok(())
}

/// User images one by one; the kernel's are never read from their files, so their number will do.
fn print_images(info: &Info, out: &mut impl Write) -> std::io::Result<()> {
    let kernel = info.images.iter().filter(|image| image.kernel).count();
    for image in info.images.iter().filter(|image| !image.kernel) {
        let mut what = match (&image.found, image.status) {
            (Some(found), "found") if *found == image.path => String::new(),
            (Some(found), _) => format!(" ({found})"),
            (None, "missing") => format!(" (looked for: {})", image.looked.join(", ")),
            _ => String::new(),
        };
        if let Some(symbols) = &image.symbols {
            what.push_str(&format!(", symbols: {symbols}"));
        }
        if image.status == "found" && image.build_id.is_none() {
            what.push_str(", no build id: it may be another build");
        }
        writeln!(out, "{:<12}{}: {}{what}", "image", image.path, image.status)?;
    }
    if kernel > 0 {
        writeln!(out, "{:<12}kernel and modules, {kernel} mappings: not decoded", "image")?;
    }
    let count = |status| info.images.iter().filter(|image| !image.kernel && image.status == status).count();
    let (found, missing, other) = (count("found"), count("missing"), count("other build"));
    if missing + other > 0 {
        let advice = "their code cannot be decoded; say where they are: --images DIR";
        writeln!(
            out,
            "{:<12}{found} found, {missing} missing, {other} of another build: {advice}",
            "images"
        )?;
    }
    Ok(())
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
