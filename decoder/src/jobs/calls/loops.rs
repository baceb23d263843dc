//! The rounds of loops, beside a unit's steps: jumps back, or to itself, in one function.
//!
//! Every branch is walked for it, which no other job of call stacks needs: it is for the few units that are replayed.

use super::UnitSteps;
use super::steps::CallSteps;
use crate::graph::{Exit, Graph, SiteTable};
use crate::profile::{CodeAddr, EdgeKind};
use crate::sink::{Branch, Event, Leave, Mark, Run, Sink};

/// [`CallSteps`] with the rounds of loops.
#[derive(Clone, Default, Debug)]
pub struct LoopSteps(CallSteps);

impl UnitSteps for LoopSteps {
    fn steps(&self) -> &CallSteps {
        &self.0
    }
}

fn leads_back(from: CodeAddr, to: CodeAddr) -> bool {
    from.image == to.image && to.addr <= from.addr
}

impl Sink for LoopSteps {
    const CLOCK: bool = true;
    const RUNS: bool = true;
    const COUNTS: bool = false;

    fn start(&mut self, graph: &mut Graph) {
        self.0.start(graph);
    }

    fn run(&mut self, run: Run<'_>, mark: Mark) {
        let (node, info) = (run.graph.node(run.node), run.graph.info(run.node));
        let addr = |addr| CodeAddr { image: Some(run.graph.image(info)), addr };
        let start = mark.ordinal - u64::from(node.insns);
        // The jumps folded into the node, in order, and its branch; then what ends it.
        for (number, jump, site) in run.graph.jump_sites(run.node) {
            let mark = Mark { ordinal: start + u64::from(jump.insns), ..mark };
            if jump.crosses {
                self.0.jump(mark, false, number, &site);
            } else if jump.kind == EdgeKind::Jmp && leads_back(addr(jump.from.0), site.addr) {
                self.0.round(mark, number);
            }
        }
        let to = match (node.exit, run.leave) {
            (Exit::Jcc, Leave::Taken) => Some(node.succ[1]),
            (Exit::JmpInd, Leave::To(to)) => Some(to),
            _ => None,
        };
        if let Some(to) = to {
            let site = run.graph.site(to);
            let within = site.function.function == info.last_function().function;
            if within && leads_back(addr(info.last.0), site.addr) {
                self.0.round(mark, SiteTable::node(to));
            } else if !within && node.exit == Exit::Jcc {
                self.0.jump(mark, false, SiteTable::node(to), &site);
            }
        }
        self.0.at_end(&run, mark);
    }

    fn branch(&mut self, branch: &Branch, mark: Mark) {
        if let (EdgeKind::Jmp | EdgeKind::JmpInd | EdgeKind::Jcc, true, Some(to)) =
            (branch.kind, branch.taken, branch.to)
            && to.function.function == branch.from.function.function
            && leads_back(branch.from.addr, to.addr)
        {
            let number = self.0.other(to);
            self.0.round(mark, number);
        }
        self.0.branch(branch, mark);
    }

    fn event(&mut self, event: Event, mark: Mark) {
        self.0.event(event, mark);
    }

    fn marks(&self, from: u64, marks: &mut Vec<u64>) -> bool {
        self.0.marks(from, marks)
    }

    fn finish(&mut self, graph: &mut Graph) {
        self.0.finish(graph);
    }

    fn forget_unit(&mut self) -> bool {
        self.0.forget_unit()
    }
}
