//! Images as libipt likes them best: sections of files, in a cache that its decoders share.

use std::ffi::{CString, c_int};
use std::path::PathBuf;
use std::ptr::{self, NonNull};

use libipt_sys as pt;

use super::PtError;
use crate::units::Ip;

/// A stretch of a file as it was mapped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileSection {
    /// The file.
    pub path: PathBuf,
    /// Where in the file the stretch begins, in bytes.
    pub offset: u64,
    /// Its size in bytes; cut at the end of the file.
    pub size: u64,
    /// Where it was mapped.
    pub address: Ip,
}

/// Mapped file sections, with what libipt learns about the blocks in them.
///
/// libipt caches blocks only for file sections, so this is how to measure its speed. The decoders of several threads
/// may share one, and should: what one has learnt serves all.
#[derive(Debug)]
pub struct SectionCache {
    raw: NonNull<pt::pt_image_section_cache>,
    ids: Vec<c_int>,
}

// SAFETY: libipt's manual, "Threading": section caches can be shared across threads and used concurrently in a build
// with FEATURE_THREADS, which is on by default and which libipt-sys does not turn off.
unsafe impl Send for SectionCache {}
// SAFETY: as above.
unsafe impl Sync for SectionCache {}

impl SectionCache {
    /// Keeps sections mapped up to this many bytes; without, a section's blocks are forgotten each time that the flow
    /// leaves it.
    const LIMIT: u64 = 1 << 32;

    /// Adds the sections, in order of time: a later one hides what it overlaps of the earlier ones.
    ///
    /// # Errors
    /// Of libipt, for a file that cannot be read or an offset beyond its end.
    pub fn new(sections: &[FileSection]) -> Result<Self, PtError> {
        // SAFETY: a name is optional.
        let raw = unsafe { pt::pt_iscache_alloc(ptr::null()) };
        let mut cache = Self { raw: NonNull::new(raw).ok_or(PtError::NOMEM)?, ids: Vec::new() };
        // SAFETY: the cache is alive.
        PtError::check(unsafe { pt::pt_iscache_set_limit(cache.raw.as_ptr(), Self::LIMIT) })?;
        for section in sections {
            let path =
                CString::new(section.path.as_os_str().as_encoded_bytes()).map_err(|_| PtError::INVALID)?;
            // SAFETY: the cache is alive; the path is copied.
            let id = unsafe {
                pt::pt_iscache_add_file(
                    cache.raw.as_ptr(),
                    path.as_ptr(),
                    section.offset,
                    section.size,
                    section.address.0,
                )
            };
            cache.ids.push(PtError::check(id)?);
        }
        Ok(cache)
    }

    /// Puts the sections into a decoder's image.
    ///
    /// # Safety
    /// The image is alive, nobody else uses it, and it does not outlive the cache.
    pub(super) unsafe fn fill(&self, image: *mut pt::pt_image) -> Result<(), PtError> {
        for &id in &self.ids {
            // SAFETY: the image by contract, the cache and its id by construction; no address space means any.
            PtError::check(unsafe { pt::pt_image_add_cached(image, self.raw.as_ptr(), id, ptr::null()) })?;
        }
        Ok(())
    }
}

impl Drop for SectionCache {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`; every decoder that uses it borrows it.
        unsafe { pt::pt_iscache_free(self.raw.as_ptr()) };
    }
}
