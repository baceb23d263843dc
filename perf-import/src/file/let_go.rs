//! Mapped bytes that were read stay in memory as long as there is room, and count as the process's own. Who reads all
//! records of a large file, one after the other, lets go of those behind it.

use super::PerfFile;

/// Reads forward through a file.
#[derive(Debug)]
pub(crate) struct LetGo<'m> {
    file: &'m PerfFile,
    /// All before is let go.
    before: u64,
}

impl<'m> LetGo<'m> {
    /// From the start.
    pub fn new(file: &'m PerfFile) -> Self {
        Self { file, before: 0 }
    }

    /// Nothing before that position will be read soon. Reading it all the same is slower, and no more than that.
    pub fn before(&mut self, position: u64) {
        // So much at a time: a call for each record would cost more than it saves.
        const STEP: u64 = 32 << 20;
        if position.saturating_sub(self.before) >= STEP {
            self.file.let_go(self.before, position);
            self.before = position;
        }
    }
}

impl PerfFile {
    #[cfg(unix)]
    fn let_go(&self, from: u64, to: u64) {
        use memmap2::UncheckedAdvice::DontNeed;
        for part in &self.parts {
            let within =
                |position: u64| position.saturating_sub(part.base).min(part.map.len() as u64) as usize;
            let (from, to) = (within(from), within(to));
            if from < to {
                // SAFETY: DontNeed loses what was written to private pages. This map is of a file and read-only: whoever
                // touches its pages again finds in them what the file holds.
                let advised = unsafe { part.map.unchecked_advise_range(DontNeed, from, to - from) };
                // Memory is all that it is about: where it cannot be had back, nothing else is wrong.
                advised.ok();
            }
        }
    }

    #[cfg(not(unix))]
    fn let_go(&self, _: u64, _: u64) {}
}
