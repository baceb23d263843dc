//! One trace, ready to be decoded by libipt.

use std::time::Duration;

use libipt_sys as pt;

use super::blocks::{BlockDecoder, BlockEnd, Status};
use super::flow::{Counter, Flow, FlowVisitor};
use super::{Block, Edges, Packets, PtError, SectionCache};
use crate::code::CodeView;
use crate::config::PtConfig;
use crate::image::{AddressSpace, Images};
use crate::psb::{PSB, next_psb};
use crate::units::Ip;

/// A trace with all that libipt must know to decode it.
#[derive(Clone, Copy, Debug)]
pub struct Session<'s> {
    pub(super) trace: &'s [u8],
    pub(super) code: CodeView<'s, 's>,
    pub(super) config: &'s PtConfig,
    pub(super) sections: Option<&'s SectionCache>,
}

/// A place where libipt gave up, to begin anew at the next PSB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    /// How far the packets had been read, in bytes from the start of the trace.
    pub offset: u64,
    /// Where the flow was; `None` where nothing was known.
    pub ip: Option<Ip>,
    /// Why.
    pub error: PtError,
}

/// What a plain walk saw.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Walk {
    /// Blocks.
    pub blocks: u64,
    /// Instructions.
    pub instructions: u64,
    /// Where libipt gave up.
    pub failures: Vec<Failure>,
}

impl<'s> Session<'s> {
    /// A session on a trace without a break ([`super::stretches`]) of code that one address space holds.
    pub fn new(
        trace: &'s [u8],
        images: &'s Images<'s>,
        space: &'s AddressSpace,
        config: &'s PtConfig,
    ) -> Self {
        Self { trace, code: CodeView { images, space }, config, sections: None }
    }

    /// Reads code from these file sections first: needed for libipt's full speed.
    #[must_use]
    pub fn with_sections(self, sections: &'s SectionCache) -> Self {
        Self { sections: Some(sections), ..self }
    }

    /// libipt's packets, from the first byte on.
    ///
    /// # Errors
    /// When libipt cannot be set up.
    pub fn packets(&self) -> Result<Packets<'s>, PtError> {
        Packets::new(self.trace, self.config)
    }

    /// Counts blocks and instructions, as fast as libipt can.
    ///
    /// # Errors
    /// When libipt cannot be set up; failures on the way are part of the result.
    pub fn walk(&self) -> Result<Walk, PtError> {
        self.timed_walk(|| Duration::ZERO).map(|(walk, _)| walk)
    }

    /// [`Session::walk`] and the time that it took by `clock`, without setting up and opening files.
    ///
    /// # Errors
    /// As [`Session::walk`].
    pub fn timed_walk(&self, clock: impl Fn() -> Duration) -> Result<(Walk, Duration), PtError> {
        let mut walk = Walk::default();
        let mut decoder = BlockDecoder::new(self, BlockEnd::Trace)?;
        let start = clock();
        self.run(&mut decoder, &mut walk);
        Ok((walk, clock().saturating_sub(start)))
    }

    /// The edge profile, with runtime addresses.
    ///
    /// # Errors
    /// When libipt cannot be set up; failures on the way are part of the result.
    pub fn edges(&self) -> Result<Edges, PtError> {
        let mut counter = Counter::default();
        self.flow(&mut counter)?;
        Ok(counter.finish())
    }

    /// Hands the flow to `flow`, in order.
    ///
    /// # Errors
    /// When libipt cannot be set up; failures on the way go to [`Flow::failure`].
    pub fn flow(&self, flow: &mut impl Flow) -> Result<(), PtError> {
        let mut decoder = BlockDecoder::new(self, BlockEnd::Branch)?;
        self.run(&mut decoder, &mut FlowVisitor::new(self.code, flow));
        Ok(())
    }

    /// The addresses of a block's instructions, in order; they end early at bytes that the images lack.
    pub fn instructions(&self, block: &Block) -> impl Iterator<Item = Ip> + use<'s> {
        let (code, mode, last) = (self.code, block.mode, block.last);
        let next =
            move |&ip: &Ip| (ip < last).then(|| code.insn(ip, mode)).flatten().map(|insn| Ip(insn.next()));
        std::iter::successors(Some(block.first), next).take_while(move |ip| *ip <= last)
    }

    /// Decodes from PSB to PSB: each failure ends one stretch, and the next begins at the first PSB that the flow has
    /// not passed. (libipt's own search begins behind what it has read, and it reads one event ahead: over a PSB+, say.)
    fn run(&self, decoder: &mut BlockDecoder<'_>, visitor: &mut impl Visitor) {
        let mut passed = 0;
        while let Some(psb) = next_psb(self.trace, passed) {
            passed = psb + PSB.len();
            let mut stretch = Stretch { decoder, visitor, passed, reading: passed };
            let Err((error, ip)) = stretch.run(psb) else { break };
            passed = stretch.passed;
            visitor.failure(Failure { offset: decoder.offset().unwrap_or(psb) as u64, ip, error });
        }
    }
}

/// The decoding from one PSB on, as far as it goes.
struct Stretch<'d, 's, V> {
    decoder: &'d mut BlockDecoder<'s>,
    visitor: &'d mut V,
    /// The flow has passed all PSBs before this offset.
    passed: usize,
    /// The status events of all PSBs before this offset have come; the walk to the last one's address may be ahead.
    reading: usize,
}

impl<V: Visitor> Stretch<'_, '_, V> {
    /// Decodes up to the end of the trace or a failure, which is returned with the address that the flow had reached.
    fn run(&mut self, psb: usize) -> Result<(), (PtError, Option<Ip>)> {
        let mut status = self.decoder.sync(psb).map_err(|error| (error, None))?;
        let mut leash = Leash::default();
        loop {
            while status.event_pending() {
                status = match self.event() {
                    Ok(next) => next,
                    Err(error) => {
                        let (block, _) = self.decoder.next();
                        return self.end(error, block.ip);
                    }
                };
            }
            let (block, next) = self.decoder.next();
            if status.end_of_trace() {
                // Only where this block begins is known, not that any of it was executed.
                return self.end(PtError::EOS, block.ip);
            }
            status = match next {
                Ok(next) => next,
                Err(error) => return self.end(error, block.ip),
            };
            if block.ninsn > 0 {
                self.passed = self.reading;
            }
            if leash.is_spent(self.decoder, &block) {
                return self.end(PtError::ENDLESS_LOOP, block.ip);
            }
            self.visitor.block(self.decoder, &block);
        }
    }

    fn event(&mut self) -> Result<Status, PtError> {
        // Before the call, for it reads the next event.
        let offset = self.decoder.offset();
        let (event, next) = self.decoder.event()?;
        match offset {
            Some(offset) if event.status_update() != 0 => self.reading = offset.max(self.reading),
            _ => self.passed = self.reading,
        }
        self.visitor.event(self.decoder, &event);
        Ok(next)
    }

    fn end(&mut self, error: PtError, ip: u64) -> Result<(), (PtError, Option<Ip>)> {
        self.visitor.arrive(ip);
        if error == PtError::EOS { Ok(()) } else { Err((error, Some(Ip(ip)))) }
    }
}

/// Ends a walk that uses no trace: libipt follows a loop of direct jumps to an address outside it for ever.
#[derive(Default)]
struct Leash {
    instructions: u32,
    offset: Option<usize>,
}

impl Leash {
    /// More than any code runs through between two packets; so rarely looked at that it costs the walk no time.
    const INSTRUCTIONS: u32 = 1 << 18;

    #[inline]
    fn is_spent(&mut self, decoder: &BlockDecoder<'_>, block: &pt::pt_block) -> bool {
        self.instructions += u32::from(block.ninsn);
        if self.instructions < Self::INSTRUCTIONS {
            return false;
        }
        self.instructions = 0;
        let before = std::mem::replace(&mut self.offset, decoder.offset());
        before == self.offset
    }
}

/// Takes what libipt finds.
pub(super) trait Visitor {
    fn block(&mut self, decoder: &mut BlockDecoder<'_>, block: &pt::pt_block);
    fn event(&mut self, decoder: &mut BlockDecoder<'_>, event: &pt::pt_event);
    /// The flow has come to this address, and what happens there is not known.
    fn arrive(&mut self, ip: u64);
    fn failure(&mut self, failure: Failure);
}

impl Visitor for Walk {
    #[inline]
    fn block(&mut self, _: &mut BlockDecoder<'_>, block: &pt::pt_block) {
        self.blocks += 1;
        self.instructions += u64::from(block.ninsn);
    }

    fn event(&mut self, _: &mut BlockDecoder<'_>, _: &pt::pt_event) {}

    fn arrive(&mut self, _: u64) {}

    fn failure(&mut self, failure: Failure) {
        self.failures.push(failure);
    }
}
