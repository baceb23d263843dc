//! A safe handle on libipt's block decoder.

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::mem;
use std::ptr::NonNull;

use libipt_sys as pt;

use super::session::Session;
use super::{PtError, SectionCache};
use crate::code::CodeView;
use crate::config::{Filter, PtConfig};
use crate::units::{Ip, Tsc};

/// Where blocks end, besides at the branches that need the trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BlockEnd {
    /// Nowhere else: the fastest.
    Trace,
    /// Also at direct jumps and calls: every block is straight code.
    Branch,
}

/// What libipt says along with a block or an event (`enum pt_status_flag`).
#[derive(Clone, Copy)]
pub(super) struct Status(u32);

impl Status {
    fn check(returned: c_int) -> Result<Self, PtError> {
        PtError::check(returned).map(|flags| Self(flags.unsigned_abs()))
    }

    /// An event comes next.
    pub fn event_pending(self) -> bool {
        self.0 & pt::pt_status_flag_pts_event_pending != 0
    }

    /// The trace is used up: what comes now is not known to have been executed.
    pub fn end_of_trace(self) -> bool {
        self.0 & pt::pt_status_flag_pts_eos != 0
    }
}

/// `struct pt_config` for a trace.
pub(super) fn pt_config(trace: &[u8], config: &PtConfig) -> pt::pt_config {
    // SAFETY: a struct of integers, pointers and an optional function, for which zero is libipt's own initial value
    // (`pt_config_init`).
    let mut raw: pt::pt_config = unsafe { mem::zeroed() };
    raw.size = size_of::<pt::pt_config>();
    let range = trace.as_ptr_range();
    raw.begin = range.start.cast_mut();
    raw.end = range.end.cast_mut();
    if let Some((ebx, eax)) = config.tsc_ctc_ratio {
        raw.cpuid_0x15_ebx = ebx;
        raw.cpuid_0x15_eax = eax;
    }
    raw.mtc_freq = config.mtc_period;
    raw.nom_freq = config.max_nonturbo_ratio;
    if let Some(cpu) = config.cpu {
        raw.cpu = pt::pt_cpu {
            vendor: pt::pt_cpu_vendor_pcv_intel,
            family: cpu.family,
            model: cpu.model as u8,
            stepping: cpu.stepping,
        };
        // SAFETY: both structs are alive. A CPU that libipt does not know has no errata.
        let _ = unsafe { pt::pt_cpu_errata(&mut raw.errata, &raw.cpu) };
    }
    raw.addr_filter = pt_filters(&config.filters);
    raw
}

/// Address filters as the CPU's registers hold them (IA32_RTIT_CTL.ADDRn_CFG: 1 filter, 2 stop; IA32_RTIT_ADDRn_A and
/// _B, both inclusive), of which there are at most four.
fn pt_filters(filters: &[Filter]) -> pt::pt_conf_addr_filter {
    let mut control = 0;
    let mut bounds = [(0, 0); 4];
    for (n, (filter, bound)) in filters.iter().zip(&mut bounds).enumerate() {
        control |= (if filter.stop { 2u64 } else { 1 }) << (4 * n);
        *bound = (filter.start.0, filter.end.0.saturating_sub(1));
    }
    let [(addr0_a, addr0_b), (addr1_a, addr1_b), (addr2_a, addr2_b), (addr3_a, addr3_b)] = bounds;
    pt::pt_conf_addr_filter {
        config: pt::pt_conf_addr_filter__bindgen_ty_1 { addr_cfg: control },
        addr0_a,
        addr0_b,
        addr1_a,
        addr1_b,
        addr2_a,
        addr2_b,
        addr3_a,
        addr3_b,
        reserved: [0; 8],
    }
}

/// libipt's block decoder over one trace.
pub(super) struct BlockDecoder<'s> {
    raw: NonNull<pt::pt_block_decoder>,
    /// Read by [`read_memory`] through a pointer that libipt holds.
    _code: Box<CodeView<'s, 's>>,
    _borrows: PhantomData<(&'s [u8], &'s SectionCache)>,
}

impl<'s> BlockDecoder<'s> {
    pub fn new(session: &Session<'s>, end: BlockEnd) -> Result<Self, PtError> {
        let mut config = pt_config(session.trace, session.config);
        // SAFETY: plain bits; zeroed memory is initialised for each of the union's variants.
        let flags = unsafe { &mut config.flags.variant.block };
        flags.set_end_on_call(u32::from(end == BlockEnd::Branch));
        flags.set_end_on_jump(u32::from(end == BlockEnd::Branch));
        flags.set_enable_iflags_events(u32::from(session.config.event_trace));
        // SAFETY: the configuration is copied; the trace it points to is borrowed for 's, and only read.
        let raw = NonNull::new(unsafe { pt::pt_blk_alloc_decoder(&config) }).ok_or(PtError::INVALID)?;
        let decoder = Self { raw, _code: Box::new(session.code), _borrows: PhantomData };
        // SAFETY: the decoder is alive; this is its own image, which lives as long as it does.
        let image = unsafe { pt::pt_blk_get_image(raw.as_ptr()) };
        let context: *const CodeView<'_, '_> = &*decoder._code;
        // SAFETY: the image is alive; the box holds still and lives as long as the decoder.
        PtError::check(unsafe {
            pt::pt_image_set_callback(image, Some(read_memory), context.cast_mut().cast::<c_void>())
        })?;
        if let Some(sections) = session.sections {
            // SAFETY: the decoder's own image; the cache is borrowed for 's.
            unsafe { sections.fill(image) }?;
        }
        Ok(decoder)
    }

    /// Begins at the PSB at an offset.
    pub fn sync(&mut self, offset: usize) -> Result<Status, PtError> {
        // SAFETY: the decoder is alive.
        Status::check(unsafe { pt::pt_blk_sync_set(self.raw.as_ptr(), offset as u64) })
    }

    /// The next block. Its `ip` is right even where the result is an error: where the flow was.
    #[inline]
    pub fn next(&mut self) -> (pt::pt_block, Result<Status, PtError>) {
        // SAFETY: a struct of integers.
        let mut block: pt::pt_block = unsafe { mem::zeroed() };
        // SAFETY: the decoder is alive; the block is as large as said.
        let returned = unsafe { pt::pt_blk_next(self.raw.as_ptr(), &mut block, size_of::<pt::pt_block>()) };
        (block, Status::check(returned))
    }

    /// The pending event.
    pub fn event(&mut self) -> Result<(pt::pt_event, Status), PtError> {
        // SAFETY: a struct and unions of integers.
        let mut event: pt::pt_event = unsafe { mem::zeroed() };
        // SAFETY: the decoder is alive; the event is as large as said.
        let returned = unsafe { pt::pt_blk_event(self.raw.as_ptr(), &mut event, size_of::<pt::pt_event>()) };
        Status::check(returned).map(|status| (event, status))
    }

    /// How far the packets are read, in bytes of the trace.
    pub fn offset(&self) -> Option<usize> {
        let mut offset = 0;
        // SAFETY: the decoder is alive.
        let returned = unsafe { pt::pt_blk_get_offset(self.raw.as_ptr(), &mut offset) };
        PtError::check(returned).ok()?;
        usize::try_from(offset).ok()
    }

    /// The time of the last timing packet; `None` before the first.
    pub fn time(&mut self) -> Option<Tsc> {
        let (mut time, mut lost_mtc, mut lost_cyc) = (0, 0, 0);
        // SAFETY: the decoder is alive.
        let returned = unsafe { pt::pt_blk_time(self.raw.as_ptr(), &mut time, &mut lost_mtc, &mut lost_cyc) };
        (returned >= 0 && time != 0).then_some(Tsc(time))
    }
}

impl Drop for BlockDecoder<'_> {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, freed once.
        unsafe { pt::pt_blk_free_decoder(self.raw.as_ptr()) };
    }
}

/// libipt's `read_memory_callback_t`: reads up to `size` bytes of code, and says how many.
///
/// # Safety
/// `buffer` has room for `size` bytes; `context` is the decoder's [`CodeView`].
unsafe extern "C" fn read_memory(
    buffer: *mut u8,
    size: usize,
    _asid: *const pt::pt_asid,
    ip: u64,
    context: *mut c_void,
) -> c_int {
    // SAFETY: by contract.
    let code = unsafe { &*context.cast::<CodeView<'_, '_>>() };
    let bytes = mapped_code(code, Ip(ip));
    let len = bytes.len().min(size).min(c_int::MAX as usize);
    if len == 0 {
        return -(pt::pt_error_code_pte_nomap as c_int);
    }
    // SAFETY: `len` bytes are there on both sides, which do not overlap: libipt's buffer is its own.
    unsafe { buffer.copy_from_nonoverlapping(bytes.as_ptr(), len) };
    len as c_int
}

/// The code from an address to the end of its mapping; empty where there is none.
fn mapped_code<'m>(code: &CodeView<'_, 'm>, ip: Ip) -> &'m [u8] {
    let Some(mapping) = code.space.find(ip) else { return &[] };
    let bytes = code.code(mapping.image, mapping.to_svma(ip)).unwrap_or(&[]);
    let left = usize::try_from(mapping.end.0 - ip.0).unwrap_or(usize::MAX);
    &bytes[..bytes.len().min(left)]
}
