//! The cold half of a node, packed: there is one for each block of code that was ever touched.

use crate::image::{FunctionAt, FunctionId};
use crate::packet::ExecMode;
use crate::placement::PlacementId;
use crate::units::Svma;

/// The cold half of a node. What few nodes have is kept aside, in the graph.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeInfo {
    pub start: Svma,
    /// The last instruction; `start` where there is none.
    pub last: Svma,
    function: PackedFunction,
    last_function: PackedFunction,
    pub placement: PlacementId,
    /// Index of the first jump folded into it.
    pub first_jump: u32,
    /// Instructions from the start on that need nothing from the trace; without end until the node is built.
    pub free: u32,
    /// How many jumps are folded into it.
    pub jumps: u8,
    pub mode: ExecMode,
    /// Consumes nothing at its end, and what is behind is known only where it is walked.
    pub leads_on: bool,
}

const _: () = assert!(size_of::<NodeInfo>() <= 48);

impl NodeInfo {
    /// Of a node that is not built.
    pub fn new(placement: PlacementId, mode: ExecMode, start: Svma, function: FunctionAt) -> Self {
        let function = PackedFunction::from(function);
        Self {
            start,
            last: start,
            function,
            last_function: function,
            placement,
            first_jump: 0,
            free: u32::MAX,
            jumps: 0,
            mode,
            leads_on: false,
        }
    }

    /// What the graph knows it by.
    pub fn key(&self) -> (PlacementId, ExecMode, Svma) {
        (self.placement, self.mode, self.start)
    }

    /// The function at `start`.
    #[inline]
    pub fn function(&self) -> FunctionAt {
        self.function.into()
    }

    /// The function at `last`.
    #[inline]
    pub fn last_function(&self) -> FunctionAt {
        self.last_function.into()
    }

    /// It is built: this is its last instruction.
    pub fn set_last(&mut self, last: Svma, function: FunctionAt) {
        (self.last, self.last_function) = (last, function.into());
    }
}

/// A [`FunctionAt`] in eight bytes.
#[derive(Clone, Copy, Debug)]
struct PackedFunction {
    /// [`u32::MAX`] for none.
    id: u32,
    flags: u8,
}

const ENTRY: u8 = 1;
const STUB: u8 = 2;
const RESUME: u8 = 4;

impl From<FunctionAt> for PackedFunction {
    fn from(at: FunctionAt) -> Self {
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        Self {
            id: at.function.map_or(u32::MAX, |id| id.0),
            flags: flag(at.entry, ENTRY) | flag(at.stub, STUB) | flag(at.resume, RESUME),
        }
    }
}

impl From<PackedFunction> for FunctionAt {
    #[inline]
    fn from(packed: PackedFunction) -> Self {
        Self {
            function: (packed.id != u32::MAX).then_some(FunctionId(packed.id)),
            entry: packed.flags & ENTRY != 0,
            stub: packed.flags & STUB != 0,
            resume: packed.flags & RESUME != 0,
        }
    }
}
