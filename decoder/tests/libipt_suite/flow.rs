//! The flow: every instruction, and every event where it is due.

use super::case::Case;
use super::events::{Words, of_flow, of_packet};
use ptflow_decoder::code::CodeView;
use ptflow_decoder::image::{AddressSpace, AddressSpaces, CodeImage, CodeRegion, Images, Mapping};
use ptflow_decoder::jobs::branches::{BranchList, Line};
use ptflow_decoder::packet::{ExecMode, Packet};
use ptflow_decoder::run::{Options, in_order};
use ptflow_decoder::sink::{Branch, Event, Mark, Run, Sink};
use ptflow_decoder::stream::{Break, Piece, TraceStream};
use ptflow_decoder::units::{AuxOffset, Ip, Svma};
use ptflow_decoder::walk::{Context, Engine};

/// A run as ptxed prints it.
#[derive(PartialEq, Default, Debug)]
struct Flow {
    instructions: Vec<u64>,
    /// What changes the flow, and how many instructions ran before it.
    events: Vec<(usize, Words)>,
    /// What packets tell of besides, in no order: some bind to an instruction ahead, which we need not know.
    told: Vec<Words>,
}

pub fn check(case: &Case) -> Option<String> {
    let expected = expected(case.ptxed.as_ref()?);
    // Only a count, or nothing, is printed.
    if case.ptxed_options.iter().any(|option| option == "--quiet" || option.starts_with("--stat")) {
        return None;
    }
    let reference = found(case, &case.trace, Engine::Careful);
    let mut padded = case.trace.clone();
    padded.resize(padded.len() + 64, 0);
    for engine in [Engine::Careful, Engine::Fast, Engine::Interrupted(1), Engine::Interrupted(2)] {
        let found = found(case, &padded, engine);
        if found != reference {
            return Some(format!("{engine:?}: {found:x?}\ncareful: {reference:x?}\n"));
        }
    }
    let same = expected.instructions == reference.instructions
        && expected.events.len() == reference.events.len()
        && expected
            .events
            .iter()
            .zip(&reference.events)
            .all(|((at, expected), (found_at, found))| at == found_at && found.fits(expected))
        && expected.told.len() == reference.told.len()
        && expected
            .told
            .iter()
            .all(|expected| reference.told.iter().any(|found| found.text == expected.text));
    Some(if same { String::new() } else { format!("expected {expected:x?}\nfound    {reference:x?}\n") })
}

/// Reads ptxed's lines.
fn expected(text: &str) -> Flow {
    let mut flow = Flow::default();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or("").trim().trim_start_matches("? ");
        let Some(event) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) else {
            if let Some(ip) =
                line.split_whitespace().next().and_then(|word| u64::from_str_radix(word, 16).ok())
            {
                flow.instructions.push(ip);
            }
            continue;
        };
        // A time may stand in front.
        let event = event.split_once("  ").map_or(event, |(_, event)| event);
        // Of modes, the interrupt flag, MNT and blocks we make no event; "resumed" is an opinion on "enabled".
        let ignored = ["exec mode", "interrupts ", "mnt", "block", "tick", "end of trace"];
        if ignored.iter().any(|word| event.starts_with(word)) || event.contains("config error") {
            continue;
        }
        let mut words = Words::parse(&event.replace("resumed", "enabled"));
        if words.text.starts_with("pwre") {
            // Its HW bit is libipt's own affair (docs/LIBIPT.md).
            words.text = words.text.replace(" hw", "");
        }
        if words.text.contains("error: ") {
            words.text = "error".to_owned();
        }
        let is_flow =
            ["enabled", "disabled", "interrupt", "overflow", "error"].contains(&words.text.as_str());
        if is_flow {
            flow.events.push((flow.instructions.len(), words));
        } else {
            flow.told.push(words);
        }
    }
    flow
}

/// What happened, with addresses of branches.
#[derive(Default)]
struct Recorder {
    list: BranchList,
    seen: Vec<(Mark, Seen)>,
}

enum Seen {
    Branch { to: Option<u64> },
    Event(Event),
}

impl Recorder {
    fn take(&mut self) {
        for (mark, line) in self.list.lines.drain(..) {
            if let Line::Transfer { to, .. } = line {
                self.seen.push((mark, Seen::Branch { to: to.map(|to| to.addr) }));
            }
        }
    }
}

impl Sink for Recorder {
    const CLOCK: bool = true;
    const RUNS: bool = true;

    fn run(&mut self, run: Run<'_>, mark: Mark) {
        self.list.run(run, mark);
        self.take();
    }

    fn branch(&mut self, branch: &Branch, mark: Mark) {
        self.list.branch(branch, mark);
        self.take();
    }

    fn event(&mut self, event: Event, mark: Mark) {
        self.seen.push((mark, Seen::Event(event)));
    }
}

fn found(case: &Case, trace: &[u8], engine: Engine) -> Flow {
    // Where the tool gets the code a second time, over the first, so do we.
    let split = if case.ptxed_options.iter().any(|option| option == "--raw") { 2 } else { 0 };
    let (origin, end) = (case.origin, case.origin + case.code.len() as u64);
    let mut images = Images::default();
    let mut place = |from: u64, to: u64| {
        let bytes = &case.code[(from - origin) as usize..(to - origin) as usize];
        let image = images.push(CodeImage::new(vec![CodeRegion { start: Svma(from), bytes }]));
        Mapping { start: Ip(from), end: Ip(to), image, svma: Svma(from) }
    };
    let mappings = [place(origin, end), place(origin + split, end)];
    let spaces = AddressSpaces::constant(AddressSpace::new(mappings));
    let piece =
        Piece { offset: AuxOffset(0), bytes: trace, break_before: Some(Break::Start), reference: None };
    let stream = TraceStream { pieces: vec![piece] };
    let context =
        Context { stream: &stream, images: &images, spaces: &spaces, config: &case.config, owners: &[] };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let options = Options { pool: &pool, engine, unit_bytes: 1 << 20, progress: &|_| {} };
    let mut walk = Walk {
        code: CodeView { images: &images, space: &spaces.versions()[0].1 },
        ip: None,
        evd: Vec::new(),
        flow: Flow::default(),
    };
    let Ok(_) = in_order::<_, std::convert::Infallible>(
        &[context],
        &options,
        |_| Recorder::default(),
        |_, recorder, result| {
            for (mark, seen) in recorder.seen.drain(..) {
                walk.see(mark.instructions(), &seen);
            }
            walk.run_to(result.end.instructions());
            Ok(())
        },
    );
    walk.flow
}

/// Fills in the instructions between what the walkers report.
struct Walk<'m> {
    code: CodeView<'m, 'm>,
    ip: Option<Ip>,
    /// Event data that waits for its event.
    evd: Vec<String>,
    flow: Flow,
}

impl Walk<'_> {
    fn run_to(&mut self, instructions: u64) {
        while (self.flow.instructions.len() as u64) < instructions {
            // An address unknown prints as 0, and fails the comparison.
            let ip = self.ip.unwrap_or(Ip(0));
            self.flow.instructions.push(ip.0);
            self.ip = self.code.insn(ip, ExecMode::Bits64).map(|insn| Ip(insn.next()));
        }
    }

    fn see(&mut self, instructions: u64, seen: &Seen) {
        self.run_to(instructions);
        let event = match seen {
            Seen::Branch { to } => {
                self.ip = to.map(Ip).or(self.ip);
                return;
            }
            Seen::Event(event) => event,
        };
        match event {
            Event::Sync { at } => {
                self.ip = Some(Ip(at.addr.addr));
                // The address at which an overflow ends.
                if let Some((place, words)) = self.flow.events.last_mut()
                    && words.text == "overflow"
                    && *place == self.flow.instructions.len()
                {
                    words.places.push(("ip".to_owned(), at.addr.addr));
                }
            }
            Event::Enabled { at, .. } => self.ip = Some(Ip(at.addr.addr)),
            Event::Async { to, .. } => self.ip = Some(Ip(to.addr.addr)),
            Event::Told { packet: Packet::Evd { kind, payload }, .. } => {
                let name = ["cr2", "vmxq", "vmxr"].get(usize::from(*kind)).unwrap_or(&"evd");
                self.evd.push(format!(", {name}: {payload:016x}"));
            }
            Event::Told { packet, at } => {
                let mut words = of_packet(packet, at.as_ref());
                // ptxed prints the reason before the qualification.
                self.evd.sort_by_key(|text| text.starts_with(", vmxq"));
                words.text.extend(self.evd.drain(..));
                self.flow.told.push(words);
            }
            _ => {}
        }
        if let Some(words) = of_flow(event) {
            self.flow.events.push((self.flow.instructions.len(), words));
        }
    }
}
