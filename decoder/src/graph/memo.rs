//! The windows met so far: a table of fixed size, in front of the fast walker.
//!
//! It pays where code repeats itself, and costs where it does not; the rate of hits decides, stretch by stretch. What is
//! counted does not depend on it.

use super::effect::Effect;
use super::window::{Key, PATH, Path, Window, count, learn};
use super::{Graph, NodeId};
use crate::code::CodeView;
use crate::packet::{ExecMode, LastIp};
use crate::walk::cursor::ReturnStack;

/// Slots: 4 MiB of windows, and 16 MiB of paths that are touched only when a window comes or goes.
const SLOTS: usize = 1 << 16;
/// Slots where tests want windows to be thrown out all the time.
const FEW_SLOTS: usize = 1 << 4;

/// Bytes of trace between two looks at the rate of hits.
const STRETCH: usize = 4 << 10;
/// So many bytes behind a pause show where hardly a window is known: each is learnt in vain.
const TRIAL: usize = 1 << 10;
/// So many bytes are walked without windows where they missed; longer when they miss again.
const FIRST_PAUSE: usize = 64 << 10;
const LAST_PAUSE: usize = 2 << 20;
const LONG_PAUSE: usize = 512 << 10;

/// The table.
#[derive(Default)]
pub(crate) struct Memo {
    /// Empty until the first window comes.
    windows: Vec<Window>,
    has_few_slots: bool,
    pub(super) paths: Vec<Path>,
    /// What windows do besides, where somebody wanted to know.
    pub(super) effects: Vec<Option<Effect>>,
    hits: u32,
    misses: u32,
    /// Walks since all was counted: no counter may overflow.
    uncounted: u32,
    /// Bytes to walk until the next look.
    left: usize,
    /// Bytes of the last pause; 0 where windows did well since.
    pause: usize,
    paused: bool,
    /// A pause is just over.
    is_trial: bool,
}

impl Memo {
    /// Whether windows are worth a look, and for how many bytes from here that holds.
    pub fn stretch(&mut self) -> (bool, usize) {
        if self.left == 0 {
            self.look();
        }
        (!self.paused, self.left)
    }

    fn look(&mut self) {
        let is_trial = std::mem::take(&mut self.is_trial);
        if self.paused {
            (self.paused, self.is_trial, self.left) = (false, true, TRIAL);
        } else if is_trial && self.misses <= self.hits {
            self.left = STRETCH - TRIAL;
            return;
        } else if self.misses > self.hits / 4 {
            // A miss costs more than a hit saves, by about as much.
            self.pause = (2 * self.pause).clamp(FIRST_PAUSE, LAST_PAUSE);
            (self.paused, self.left) = (true, self.pause);
        } else {
            (self.pause, self.left) = (0, STRETCH);
        }
        (self.hits, self.misses) = (0, 0);
    }

    /// Whether windows missed time and again. A short pause, while the table fills, is not worth the lines of all nodes that
    /// another way of walking needs.
    pub fn is_in_vain(&mut self) -> bool {
        !self.stretch().0 && self.pause >= LONG_PAUSE
    }

    /// So many bytes were walked since [`Self::stretch`] said how.
    pub fn walked(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// Fewer slots, from the start on.
    pub fn shrink(&mut self) {
        self.has_few_slots = true;
    }

    #[inline]
    fn slot(&self, hash: u64) -> usize {
        hash as usize & self.windows.len().wrapping_sub(1)
    }

    /// Another slot, for windows that only the return addresses tell apart.
    fn second_slot(&self, hash: u64, stack: &ReturnStack) -> usize {
        self.slot(hash ^ stack.top_hash() >> 32 ^ 1)
    }
}

impl Graph {
    /// Walks a window if it was met before, or can be learnt. Gives its bytes, where it leads, the last IP and its slot.
    #[inline]
    pub(crate) fn window(
        &mut self,
        code: &CodeView<'_, '_>,
        key: &Key,
        mode: ExecMode,
        last_ip: LastIp,
        stack: &mut ReturnStack,
    ) -> Option<(usize, NodeId, LastIp, usize)> {
        let hash = key.hash();
        let mut slot = self.memo.slot(hash);
        if let Some(window) = self.memo.windows.get_mut(slot)
            && window.is_at(key)
        {
            if window.apply(stack) {
                window.count += 1;
                self.memo.hits += 1;
                return Some((usize::from(window.used), window.next, window.last_ip, slot));
            }
            slot = self.memo.second_slot(hash, stack);
            if let Some(window) = self.memo.windows.get_mut(slot)
                && window.is_at(key)
                && window.apply(stack)
            {
                window.count += 1;
                self.memo.hits += 1;
                return Some((usize::from(window.used), window.next, window.last_ip, slot));
            }
        }
        self.learn(code, key, mode, last_ip, stack, slot)
    }

    #[cold]
    #[inline(never)]
    fn learn(
        &mut self,
        code: &CodeView<'_, '_>,
        key: &Key,
        mode: ExecMode,
        last_ip: LastIp,
        stack: &mut ReturnStack,
        mut slot: usize,
    ) -> Option<(usize, NodeId, LastIp, usize)> {
        if self.memo.windows.is_empty() {
            let slots = if self.memo.has_few_slots { FEW_SLOTS } else { SLOTS };
            self.memo.windows = vec![Window::FREE; slots];
            self.memo.paths = vec![[0; PATH]; slots];
            slot = self.memo.slot(key.hash());
        }
        let mut path = [0; PATH];
        let Some(mut window) = learn(self, code, key, mode, last_ip, stack, &mut path) else {
            self.memo.misses += 1;
            return None;
        };
        if !window.apply(stack) {
            return None;
        }
        window.count = 1;
        // To fill the table is worth the time wherever it is.
        if self.memo.windows[slot].used > 0 {
            self.memo.misses += 1;
            self.forget_window(slot);
        }
        self.memo.windows[slot] = window;
        self.memo.paths[slot] = path;
        if let Some(effect) = self.memo.effects.get_mut(slot) {
            *effect = None;
        }
        Some((usize::from(window.used), window.next, window.last_ip, slot))
    }

    /// Counts a window's walks in the nodes and frees its slot.
    fn forget_window(&mut self, slot: usize) {
        let times = std::mem::replace(&mut self.memo.windows[slot], Window::FREE).count;
        if times > 0 {
            let path = self.memo.paths[slot];
            count(self, &path, u64::from(times));
        }
    }

    /// Before so many bytes are walked: no counter of a window may overflow.
    pub(crate) fn before_bytes(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        match self.memo.uncounted.checked_add(bytes) {
            Some(sum) => self.memo.uncounted = sum,
            None => {
                self.settle();
                self.memo.uncounted = bytes;
            }
        }
    }

    /// Counts all walks of windows in the nodes.
    pub(crate) fn settle(&mut self) {
        for slot in 0..self.memo.windows.len() {
            self.forget_window(slot);
        }
    }
}
