//! A job that keeps nothing: how many frames there were.

use ptflow_decoder::jobs::calls::{FrameName, FrameSink};
use ptflow_decoder::ledger::LossReason;
use ptflow_decoder::units::Ns;
use std::convert::Infallible;

/// Counts frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frames(pub u64);

impl FrameSink for Frames {
    type Error = Infallible;
    fn open(&mut self, _: usize, _: Ns, _: FrameName, _: bool) -> Result<(), Infallible> {
        self.0 += 1;
        Ok(())
    }
    fn close(&mut self, _: usize, _: Ns) -> Result<(), Infallible> {
        Ok(())
    }
    fn gap(&mut self, _: usize, _: Ns, _: Ns, _: LossReason) -> Result<(), Infallible> {
        Ok(())
    }
}
