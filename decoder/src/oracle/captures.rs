//! Real hardware traces, read by libipt, by the lexer and by the walkers.
//!
//! `PTFLOW_CAPTURES` names a folder with the Intel PT bundles of LLVM's LLDB test data
//! (lldb/test/API/commands/trace/intelpt-trace and intelpt-trace-multi-file) as `lldb-intelpt-trace` and
//! `lldb-multi-file`; without it these tests pass with a line that says so.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Block, Failure, FileSection, Flow, Packets, PtError, SectionCache, Session, Transfer};
use crate::config::{CpuModel, PtConfig};
use crate::image::{AddressSpace, AddressSpaces, CodeImage, CodeRegion, Images, Mapping};
use crate::packet::lexer::{BlockContext, lex};
use crate::profile::EdgeRow;
use crate::run::{Counts, Options, count};
use crate::stream::{Break, Piece, TraceStream};
use crate::units::{AuxOffset, ImageId, Ip, Svma};
use crate::walk::{Context, Engine};

/// One thread's trace and its executables, each one segment of code at the file's start.
struct Bundle {
    trace: Vec<u8>,
    /// Path, bytes, load address, first stated address.
    files: Vec<(PathBuf, Vec<u8>, u64, u64)>,
    config: PtConfig,
}

/// Both bundles were recorded by a Broadwell, without TSC.
fn bundle(folder: &str, trace: &str, files: &[(&str, usize, u64, u64)]) -> Option<Bundle> {
    let Some(captures) = std::env::var_os("PTFLOW_CAPTURES") else {
        println!("skipped: PTFLOW_CAPTURES is not set");
        return None;
    };
    let folder = Path::new(&captures).join(folder);
    let read = |name: &str| fs::read(folder.join(name)).expect("a file of the bundle");
    let files = files.iter().map(|&(name, len, address, svma)| {
        let mut bytes = read(name);
        bytes.truncate(len);
        (folder.join(name), bytes, address, svma)
    });
    let cpu = Some(CpuModel { family: 6, model: 79, stepping: 1 });
    Some(Bundle {
        trace: read(trace),
        files: files.collect(),
        config: PtConfig { tsc: false, cpu, ..PtConfig::default() },
    })
}

/// Gathers what `Session::flow` tells.
#[derive(Default)]
struct Gather {
    blocks: Vec<Block>,
    failures: Vec<Failure>,
}

impl Flow for Gather {
    const TIMES: bool = true;

    fn block(&mut self, block: &Block) {
        self.blocks.push(*block);
    }
    fn transfer(&mut self, _: &Transfer) {}
    fn failure(&mut self, failure: &Failure) {
        self.failures.push(*failure);
    }
    fn odd(&mut self, ip: Ip) {
        panic!("no agreement on {ip}");
    }
    fn untold(&mut self, ip: Ip) {
        panic!("untold branch at {ip}");
    }
}

struct Found {
    instructions: Vec<u64>,
    failures: Vec<Failure>,
    /// Edges by libipt, and by each engine.
    edges: Vec<EdgeRow>,
    native: Vec<Counts>,
}

fn decode(bundle: &Bundle) -> Found {
    let mut images = Images::default();
    let mut mappings = Vec::new();
    let mut sections = Vec::new();
    for (n, (path, bytes, address, svma)) in bundle.files.iter().enumerate() {
        images.push(CodeImage::new(vec![CodeRegion { start: Svma(*svma), bytes }]));
        let end = Ip(address + bytes.len() as u64);
        mappings.push(Mapping { start: Ip(*address), end, image: ImageId(n as u32), svma: Svma(*svma) });
        let size = bytes.len() as u64;
        sections.push(FileSection { path: path.clone(), offset: 0, size, address: Ip(*address) });
    }
    let space = AddressSpace::new(mappings);
    let cache = SectionCache::new(&sections).expect("sections");
    let session = Session::new(&bundle.trace, &images, &space, &bundle.config).with_sections(&cache);
    let mut gather = Gather::default();
    session.flow(&mut gather).expect("libipt");
    let instructions =
        gather.blocks.iter().flat_map(|block| session.instructions(block)).map(|ip| ip.0).collect();

    let piece = Piece {
        offset: AuxOffset(0),
        bytes: &bundle.trace,
        break_before: Some(Break::Start),
        reference: None,
    };
    let stream = TraceStream { pieces: vec![piece] };
    let spaces = AddressSpaces::constant(space.clone());
    let context =
        Context { stream: &stream, images: &images, spaces: &spaces, config: &bundle.config, owners: &[] };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    let native = [Engine::Careful, Engine::Fast].map(|engine| {
        let mut counts =
            count(&[context], &Options { pool: &pool, engine, unit_bytes: 1 << 20, progress: &|_| {} });
        // libipt's addresses are runtime addresses.
        for row in &mut counts.rows {
            for addr in [&mut row.from, &mut row.to].into_iter().flatten() {
                if let Some(image) = addr.image.take() {
                    let (_, _, address, svma) = &bundle.files[image.0 as usize];
                    addr.addr = addr.addr - svma + address;
                }
            }
        }
        counts.rows.sort_by_key(EdgeRow::key);
        counts
    });
    Found {
        instructions,
        failures: gather.failures,
        edges: session.edges().expect("libipt").rows,
        native: native.into(),
    }
}

fn same_packets(bundle: &Bundle) {
    let mut at = 0;
    let mut context = BlockContext::None;
    for theirs in Packets::new(&bundle.trace, &bundle.config).expect("libipt") {
        let theirs = theirs.expect("a packet");
        let (ours, len) = lex(&bundle.trace[at..], &mut context).expect("a packet");
        assert_eq!((theirs.offset, theirs.size, theirs.packet), (at as u64, len, Some(ours)));
        at += len;
    }
    assert_eq!(at, bundle.trace.len());
}

#[test]
fn a_loop_recorded_by_hardware() {
    let files = [("a.out", 0x6fc, 0x40_0000, 0x40_0000)];
    let Some(bundle) = bundle("lldb-intelpt-trace", "3842849.trace", &files) else { return };
    same_packets(&bundle);
    let found = decode(&bundle);
    // LLDB's own list, from its test.
    let turn = [0x40_0521, 0x40_0525, 0x40_0529, 0x40_052d];
    let expected = [&[0x40_0511, 0x40_0518, 0x40_051f, 0x40_0529, 0x40_052d][..], &turn.repeat(4)].concat();
    assert_eq!(found.instructions, expected);
    assert_eq!(found.failures, []);
    for native in &found.native {
        assert_eq!(native.rows, found.edges);
        assert_eq!(native.instructions, expected.len() as u64);
    }
}

#[test]
fn three_images_and_one_missing() {
    let files = [
        ("a.out", 0x8a4, 0x40_0000, 0x40_0000),
        ("libfoo.so", 0x794, 0x7fff_f7bd_9000, 0),
        ("libbar.so", 0x73c, 0x7fff_f79d_7000, 0),
    ];
    let Some(bundle) = bundle("lldb-multi-file", "multi-file.trace", &files) else { return };
    same_packets(&bundle);
    let found = decode(&bundle);
    // The dynamic loader: libipt gives up there, the walkers go on at the next TIP into known code.
    let at: Vec<_> = found.failures.iter().map(|failure| (failure.error, failure.ip)).collect();
    assert_eq!(at, [(PtError::NOMAP, Some(Ip(0x7fff_f7df_1950)))]);
    assert_eq!(found.instructions.len(), 45);
    for native in &found.native {
        for theirs in &found.edges {
            let ours = native.rows.iter().find(|row| row.key() == theirs.key());
            let ours = ours.unwrap_or_else(|| panic!("{theirs:x?} is missing"));
            assert!(ours.taken >= theirs.taken && ours.not_taken >= theirs.not_taken, "{theirs:x?}");
        }
        assert!(native.instructions >= 45);
    }
}
