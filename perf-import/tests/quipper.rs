//! A real Intel PT recording of perf 4.14, record by record against the parse of it that google/perf_data_converter
//! ships beside it.

mod kit;
mod text_proto;

use ptflow_perf_import::features::{BuildId, bit};
use ptflow_perf_import::record::{
    Aux, AuxTrace, Comm, ItraceStart, Mmap, PtInfo, Record, Switch, Task, TimeConv, WriteRecord, kind, misc,
};
use ptflow_perf_import::{Capture, Cpu, PerfFile, Pid, Tid};
use text_proto::Message;

fn folder() -> Option<std::path::PathBuf> {
    Some(kit::captures("quipper")?.join("quipper-intel_pt-4.14"))
}

fn open() -> Option<(PerfFile, Message)> {
    let folder = folder()?;
    let text = std::fs::read(folder.join("perf.data.intel_pt-4.14.pb_text")).unwrap();
    let file = PerfFile::open(&folder.join("perf.data.intel_pt-4.14")).unwrap();
    Some((file, text_proto::parse(&text)))
}

#[test]
fn every_attribute() {
    let Some((file, golden)) = open() else { return };
    let attrs: Vec<&Message> = golden.messages("file_attrs").collect();
    assert_eq!(file.events().iter().count(), attrs.len());
    for (event, golden) in file.events().iter().zip(attrs) {
        let attr = golden.message("attr");
        assert_eq!(event.ids, golden.numbers("ids"));
        let ours = [
            ("type", u64::from(event.attr.kind)),
            ("config", event.attr.config),
            ("sample_period", event.attr.sample_period),
            ("sample_type", event.attr.sample_type),
            ("read_format", event.attr.read_format),
            ("wakeup_events", u64::from(event.attr.wakeup)),
            ("bp_type", u64::from(event.attr.bp_type)),
            ("branch_sample_type", event.attr.branch_sample_type),
            ("sample_regs_user", event.attr.sample_regs_user),
            ("sample_stack_user", u64::from(event.attr.sample_stack_user)),
        ];
        for (name, value) in ours {
            assert_eq!(value, attr.number(name), "{name}");
        }
        let flags = [
            (0, "disabled"),
            (1, "inherit"),
            (4, "exclude_user"),
            (5, "exclude_kernel"),
            (6, "exclude_hv"),
            (8, "mmap"),
            (9, "comm"),
            (10, "freq"),
            (12, "enable_on_exec"),
            (13, "task"),
            (18, "sample_id_all"),
            (20, "exclude_guest"),
            (23, "mmap2"),
            (24, "comm_exec"),
            (26, "context_switch"),
        ];
        for (bit, name) in flags {
            assert_eq!(event.attr.flags >> bit & 1, attr.number(name), "{name}");
        }
    }
}

#[test]
fn every_record() {
    let Some((file, golden)) = open() else { return };
    let mut walk = file.records();
    let mut records: Vec<Record<'_>> = walk.by_ref().collect();
    // The parse is in order of time.
    let time = |record: &Record<'_>| match file.events().sample(record) {
        Some((_, sample)) => sample.time,
        None => file.events().trailer(record).time,
    };
    records.sort_by_key(|record| time(record).map_or(0, |time| time.0));
    let mut records = records.into_iter();
    let mut compared = 0;
    for golden in golden.messages("events") {
        let record = records.next().expect("as many records");
        let header = golden.message("header");
        let ours = [record.kind.into(), u64::from(record.misc), record.body.len() as u64 + 8];
        assert_eq!(ours, ["type", "misc", "size"].map(|name| header.number(name)), "{:?}", record.offset);
        if record.kind != kind::FINISHED_ROUND {
            same(&file, &record, golden);
        }
        compared += 1;
    }
    assert_eq!(records.next(), None);
    assert_eq!((compared, walk.skipped(), walk.first_damage()), (257, 0, None));
}

fn same(file: &PerfFile, record: &Record<'_>, golden: &Message) {
    let trailer = file.events().trailer(record);
    let body = golden.body();
    let number = |name: &str| body.number(name);
    let task = |prefix: &str| {
        (Pid(number(&format!("{prefix}pid")) as u32), Tid(number(&format!("{prefix}tid")) as u32))
    };
    match record.kind {
        kind::MMAP | kind::MMAP2 => {
            let ours = Mmap::read(record).unwrap();
            assert_eq!((ours.pid, ours.tid), task(""));
            assert_eq!([ours.addr, ours.len, ours.pgoff], ["start", "len", "pgoff"].map(number));
            assert_eq!(ours.filename, body.bytes("filename"));
            assert_eq!(ours.build_id, None);
            match ours.prot {
                Some((prot, flags)) => {
                    assert_eq!([prot, flags].map(u64::from), ["prot", "flags"].map(number));
                }
                None => assert_eq!(record.kind, kind::MMAP),
            }
        }
        kind::COMM => {
            let ours = Comm::read(record).unwrap();
            assert_eq!(((ours.pid, ours.tid), ours.comm), (task(""), &*body.bytes("comm")));
        }
        kind::EXIT => {
            let ours = Task::read(record).unwrap();
            assert_eq!((ours.pid, ours.tid), task(""));
            assert_eq!([ours.ppid.0, ours.ptid.0].map(u64::from), ["ppid", "ptid"].map(number));
            assert_eq!((ours.exit, ours.time.0), (true, number("fork_time_ns")));
        }
        kind::SAMPLE => {
            let (_, ours) = file.events().sample(record).unwrap();
            assert_eq!((ours.ip.unwrap().0, ours.task), (number("ip"), Some(task(""))));
            assert_eq!(ours.time.unwrap().0, number("sample_time_ns"));
            assert_eq!((ours.identifier, ours.period.unwrap()), (Some(number("id")), number("period")));
            assert_eq!(ours.time.unwrap().0, golden.number("timestamp"));
            return;
        }
        kind::AUX => {
            let ours = Aux::read(record).unwrap();
            assert_eq!([ours.offset, ours.size], ["aux_offset", "aux_size"].map(number));
            let flags = ["is_truncated", "is_overwrite", "is_partial"].map(number);
            assert_eq!(ours.flags, flags[0] | flags[1] << 1 | flags[2] << 2);
        }
        kind::ITRACE_START => {
            let ours = ItraceStart::read(record).unwrap();
            assert_eq!((ours.pid, ours.tid), task(""));
        }
        kind::SWITCH_CPU_WIDE => {
            let ours = Switch::read(record).unwrap();
            assert_eq!(ours.out, number("is_out") == 1);
            assert_eq!(ours.other, Some(task("next_prev_")));
        }
        kind::AUXTRACE => {
            let ours = AuxTrace::read(record).unwrap();
            let fields = [ours.size, ours.offset, ours.reference.0, ours.idx.into()];
            assert_eq!(fields, ["size", "offset", "reference", "idx"].map(number));
            assert_eq!(ours.tid, Some(Tid(number("tid") as u32)));
            assert_eq!(ours.cpu, Some(Cpu(number("cpu") as u32)));
            assert!(record.payload == body.bytes("trace_data"), "trace bytes differ");
        }
        kind::AUXTRACE_INFO => {
            // Read and written again, the words must be those that quipper saw.
            let mut again = Vec::new();
            PtInfo::read(record).unwrap().body(&mut again);
            let words = body.numbers("unparsed_binary_blob_priv_data");
            let ours = again[8..].chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
            assert_eq!(ours.take(words.len()).collect::<Vec<_>>(), words);
        }
        kind::TIME_CONV => {
            let ours = TimeConv::read(record).unwrap();
            assert_eq!(
                [ours.shift, ours.mult, ours.zero],
                ["time_shift", "time_mult", "time_zero"].map(number)
            );
        }
        other => panic!("no golden for record type {other}"),
    }
    if record.kind < kind::USER_TYPE_START {
        let golden = body.message("sample_info");
        let (pid, tid) = trailer.task.unwrap();
        let ours = [
            ("pid", u64::from(pid.0)),
            ("tid", u64::from(tid.0)),
            ("sample_time_ns", trailer.time.unwrap().0),
            ("id", trailer.id.unwrap()),
            ("cpu", u64::from(trailer.cpu.unwrap().0)),
        ];
        for (name, value) in ours {
            assert_eq!(value, golden.number(name), "{name} at {:?}", record.offset);
        }
    }
    assert_eq!(trailer.time.map_or(0, |time| time.0), golden.number("timestamp"));
}

#[test]
fn every_build_id() {
    let Some((file, golden)) = open() else { return };
    let ours: Vec<BuildId<'_>> = BuildId::read_all(file.feature(bit::BUILD_ID).unwrap()).collect();
    let golden: Vec<&Message> = golden.messages("build_ids").collect();
    assert_eq!(ours.len(), golden.len());
    for (ours, golden) in ours.iter().zip(&golden) {
        assert_eq!(ours.filename, golden.bytes("filename"));
        assert_eq!(ours.id, golden.bytes("build_id_hash"));
        assert_eq!(u64::from(ours.pid.0), golden.number("pid"));
        assert_eq!(ours.kernel, golden.number("misc") & 7 == u64::from(misc::KERNEL));
    }
    // And against `perf buildid-list`, as the folder has it.
    let list = std::fs::read_to_string(folder().unwrap().join("perf.data.intel_pt-4.14.buildids")).unwrap();
    let hex = |id: &[u8]| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let lines =
        ours.iter().map(|entry| format!("{} {}", hex(entry.id), String::from_utf8_lossy(entry.filename)));
    assert_eq!(lines.collect::<Vec<_>>(), list.lines().collect::<Vec<_>>());
}

#[test]
fn streams_are_what_the_aux_records_say() {
    let Some((file, golden)) = open() else { return };
    let capture = Capture::read(&file).unwrap();
    let mut bytes_by_cpu = std::collections::BTreeMap::<u32, u64>::new();
    for aux in golden.messages("events").flat_map(|event| event.messages("aux_event")) {
        let cpu = aux.message("sample_info").number("cpu") as u32;
        *bytes_by_cpu.entry(cpu).or_default() += aux.number("aux_size");
    }
    assert_eq!(bytes_by_cpu.values().sum::<u64>(), 149_968);
    let streams: Vec<(u32, u64)> =
        capture.streams.iter().map(|stream| (stream.cpu.unwrap().0, stream.trace.len())).collect();
    assert_eq!(streams, bytes_by_cpu.into_iter().collect::<Vec<_>>());
    assert!(capture.streams.iter().all(|stream| stream.trace.pieces.len() == 1 && stream.tid.is_none()));
    assert_eq!((capture.aux.records, capture.aux.bytes, capture.aux.truncated), (10, 149_968, 0));
    assert_eq!(capture.switches.len(), 152 + 2);
    assert!(capture.switches.is_sorted_by_key(|switch| switch.time));
    // 65 of the mappings are the kernel and its modules: no process has them.
    let pids: Vec<Pid> = capture.processes.iter().map(|(pid, _)| pid).collect();
    assert_eq!(pids, [Pid(3174)]);
    assert_eq!(capture.notes, [""; 0]);
}

/// The same recording as perf would have written it to a pipe: events, features and build ids as records.
fn as_pipe(file: &[u8]) -> Vec<u8> {
    let section = |at: usize| (kit::u64_at(file, at) as usize, kit::u64_at(file, at + 8) as usize);
    let mut out = b"PERFILE2".to_vec();
    out.extend(16u64.to_le_bytes());
    let record = |out: &mut Vec<u8>, kind: u32, parts: &[&[u8]]| {
        let size: usize = 8 + parts.iter().map(|part| part.len()).sum::<usize>();
        out.extend(kind.to_le_bytes());
        out.extend([0, 0]);
        out.extend(u16::try_from(size).unwrap().to_le_bytes());
        parts.iter().for_each(|part| out.extend(*part));
    };
    let ((attrs, len), step) = (section(24), kit::u64_at(file, 16) as usize);
    for entry in file[attrs..attrs + len].chunks_exact(step) {
        let (ids, len) = (kit::u64_at(entry, step - 16) as usize, kit::u64_at(entry, step - 8) as usize);
        let size = kit::u32_at(entry, 4) as usize;
        record(&mut out, 64, &[&entry[..size], &file[ids..ids + len]]);
    }
    let (data, len) = section(40);
    let bits = (0..256u64).filter(|bit| file[72 + *bit as usize / 8] >> (bit % 8) & 1 != 0);
    for (index, bit) in bits.enumerate() {
        let (at, len) = section(data + len + 16 * index);
        // Where the trace lies in a file says nothing about a pipe; build ids are whole records already.
        match bit {
            18 => {}
            2 => {
                let start = out.len();
                out.extend(&file[at..at + len]);
                let mut at = start;
                while at < out.len() {
                    out[at..at + 4].copy_from_slice(&67u32.to_le_bytes());
                    at += usize::from(kit::u16_at(&out, at + 6));
                }
            }
            _ => record(&mut out, 80, &[&bit.to_le_bytes(), &file[at..at + len]]),
        }
    }
    out.extend(&file[data..data + len]);
    out
}

#[test]
fn the_same_through_a_pipe() {
    let Some((file, _)) = open() else { return };
    let bytes = std::fs::read(file.path()).unwrap();
    let pipe = PerfFile::read(std::path::Path::new("-"), &as_pipe(&bytes)[..]).unwrap();
    assert!(pipe.is_pipe() && !file.is_pipe());
    assert!(pipe.events().iter().eq(file.events().iter()));
    // A whole file that comes through a pipe.
    let piped = PerfFile::read(std::path::Path::new("-"), &bytes[..]).unwrap();
    let expected = Capture::read(&file).unwrap();
    for other in [&pipe, &piped] {
        let capture = Capture::read(other).unwrap();
        assert_eq!(capture.config, expected.config);
        assert_eq!(capture.machine, expected.machine);
        assert_eq!(capture.switches, expected.switches);
        assert_eq!(format!("{:?}", capture.processes), format!("{:?}", expected.processes));
        assert_eq!(capture.notes, expected.notes);
        for (stream, expected) in capture.streams.iter().zip(&expected.streams) {
            assert_eq!((stream.idx, stream.cpu, stream.tid), (expected.idx, expected.cpu, expected.tid));
            let pieces = |stream: &ptflow_perf_import::streams::PtStream<'_>| {
                let piece = stream.trace.pieces.iter();
                piece.map(|p| (p.offset, p.bytes.to_vec(), p.break_before, p.reference)).collect::<Vec<_>>()
            };
            assert!(pieces(stream) == pieces(expected));
        }
        assert_eq!(capture.streams.len(), expected.streams.len());
    }
}
