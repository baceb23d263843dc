//! From the decoder's tree, of ids, to the exporters', of names and source lines.

use super::Session;
use crate::frame_names::{self, image_name};
use crate::index;
use crate::off_cpu::OffCpu;
use ptflow_decoder::image::FunctionRole;
use ptflow_decoder::jobs::calls::FrameName;
use ptflow_decoder::jobs::invocations::{Begin, End};
use ptflow_decoder::jobs::replay::{Detail, Interruption, Node};
use ptflow_decoder::profile::CodeAddr;
use ptflow_decoder::units::{ImageId, Svma};
use ptflow_exporters::call_tree::{self, CallTree, Loop, VERSION};
use ptflow_perf_import::lines::Lines;
use std::collections::HashMap;

/// Source lines of all images; an image's are read when one is asked for.
pub struct AllLines<'s> {
    session: &'s Session<'s>,
    images: HashMap<ImageId, Lines<'s>>,
}

impl<'s> AllLines<'s> {
    /// Of a capture.
    pub fn new(session: &'s Session<'s>) -> Self {
        Self { session, images: HashMap::new() }
    }

    /// `file:line` of the instruction at an address.
    pub fn at(&mut self, addr: CodeAddr) -> Option<String> {
        let image = addr.image?;
        let store = &self.session.loaded.store;
        let lines = self.images.entry(image).or_insert_with(|| store.lines(image));
        let line = lines.at(Svma(addr.addr))?;
        Some(format!("{}:{}", line.file_name(), line.line))
    }

    /// The line of the call that returns to an address: that of the byte before.
    fn call_before(&mut self, returns_to: CodeAddr) -> Option<String> {
        self.at(CodeAddr { addr: returns_to.addr.checked_sub(1)?, ..returns_to })
    }
}

/// The name of a function and how far in it an address is, or what else there is to say.
pub fn symbol(session: &Session<'_>, addr: CodeAddr) -> String {
    let known = addr.image.and_then(|image| {
        let range = session.images.get(image)?.function_range(Svma(addr.addr))?;
        let stub = if range.role == FunctionRole::Stub { "@plt" } else { "" };
        let name = session.functions.get(range.function);
        let name = if name.ends_with(stub) { name.to_owned() } else { format!("{name}{stub}") };
        match addr.addr - range.start.0 {
            0 => Some(name),
            offset => Some(format!("{name}+{offset:#x}")),
        }
    });
    known.unwrap_or_else(|| format!("{}{:#x}", image_before(session, addr.image), addr.addr))
}

fn image_before(session: &Session<'_>, image: Option<ImageId>) -> String {
    image.map_or(String::new(), |image| format!("{}+", image_name(&session.loaded.store, image)))
}

/// What a frame is called.
pub fn frame_name(session: &Session<'_>, frame: FrameName) -> String {
    frame_names::frame_name(&session.loaded.store, session.functions, frame)
}

/// The tree with names.
pub fn named(session: &Session<'_>, stack: usize, detail: &Detail) -> CallTree {
    let owner = session.owners.get(stack);
    let lines = AllLines::new(session);
    let off_cpu = OffCpu::of(&session.loaded.capture);
    let began = match detail.began {
        Begin::Seen => None,
        Begin::InGap => Some("it began before a gap in the trace ended, and is not known up to there"),
        Begin::BeforeTrace => Some("it began before the thread's trace did"),
    };
    let ended = match detail.ended {
        End::Seen => None,
        End::InGap => Some("a gap in the trace begins here; what came behind it is not known"),
        End::AfterTrace => Some("the thread's trace ends here"),
    };
    let cut: Vec<&str> = began.into_iter().chain(ended).collect();
    CallTree {
        ptflow_replay: VERSION,
        tid: owner.map_or(0, |owner| owner.tid),
        thread: owner.map_or(String::new(), |owner| owner.name.clone()),
        start_ns: detail.start.0,
        begin: index::began(detail.began).to_owned(),
        end: index::ended(detail.ended).to_owned(),
        cut: (!cut.is_empty()).then(|| cut.join("; ")),
        place: place(session, detail),
        clock: if session.loaded.capture.config.time.is_some() { "ns" } else { "ticks" }.to_owned(),
        root: Naming { session, detail, tid: owner.map_or(0, |owner| owner.tid), off_cpu: &off_cpu, lines }
            .node(0),
    }
}

/// Where the function is, where several that were asked for have its name.
fn place(session: &Session<'_>, detail: &Detail) -> Option<String> {
    let FrameName::Function(this) = detail.nodes.first()?.what else { return None };
    let name = session.functions.get(this);
    if session.wanted.iter().filter(|id| session.functions.get(**id) == name).count() < 2 {
        return None;
    }
    let homes = session.known().homes();
    homes.get(&this).map(|home| format!("{}+{}", home.file, home.start))
}

struct Naming<'n> {
    session: &'n Session<'n>,
    detail: &'n Detail,
    tid: u32,
    off_cpu: &'n OffCpu,
    lines: AllLines<'n>,
}

impl Naming<'_> {
    /// Recursion is as deep as the tree, which has a bound.
    fn node(&mut self, at: usize) -> call_tree::Node {
        let Some(node) = self.detail.nodes.get(at) else { return call_tree::Node::default() };
        let Node { calls, ns, longest, instructions, deeper, .. } = *node;
        let children: Vec<_> = node.children.iter().map(|child| self.node(*child)).collect();
        let head = |addr: CodeAddr, lines: &mut AllLines<'_>| {
            lines.at(addr).unwrap_or_else(|| symbol(self.session, addr))
        };
        let loops = node
            .loops
            .iter()
            .map(|(addr, iterations)| Loop { at: head(*addr, &mut self.lines), iterations: *iterations });
        call_tree::Node {
            name: frame_name(self.session, node.what),
            loops: loops.collect(),
            called_at: node.returns_to.and_then(|returns_to| self.lines.call_before(returns_to)),
            calls,
            ns,
            longest_ns: longest,
            off_cpu_ns: self.off_cpu(at, &children),
            instructions,
            cycles: node.cycles,
            first_ns: node.first.0.0.saturating_sub(self.detail.start.0),
            deeper,
            children,
        }
    }

    /// Time off CPU in a node and below it, where the capture tells it: threads leave their CPU in the kernel only.
    fn off_cpu(&self, at: usize, children: &[call_tree::Node]) -> Option<u64> {
        let (from, to) = (self.detail.start.0, self.detail.end.0);
        self.off_cpu.between(self.tid, from, to)?;
        let own = self.detail.interruptions.iter().filter(|interruption| interruption.node == at);
        let own: u64 = own
            .filter_map(|Interruption { from, to, .. }| self.off_cpu.between(self.tid, from.0, to.0))
            .sum();
        Some(own + children.iter().filter_map(|child| child.off_cpu_ns).sum::<u64>())
    }
}
