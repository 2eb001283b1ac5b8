//! Large zeroed rooms that become resident as they are written.

use std::{
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicBool, Ordering},
};
#[cfg(unix)]
use std::{ptr, slice};

use crate::Error;

/// Whether huge pages are asked for.
static HUGE: AtomicBool = AtomicBool::new(true);

/// Whether weights and caches that are made from here on ask the system for huge pages, as they do
/// by default: fewer address look-ups, for up to 2 MiB more per matrix.
pub fn use_huge_pages(on: bool) {
    HUGE.store(on, Ordering::Relaxed);
}

/// Keeps `bytes` from being paged out.
///
/// **Errors**: [`Error::Lock`] where the system does not allow it, or has no such thing.
pub(crate) fn lock(bytes: &[u8]) -> Result<(), Error> {
    #[cfg(unix)]
    {
        // SAFETY: the range is that of a live slice, and locking changes no contents.
        if unsafe { libc::mlock(bytes.as_ptr().cast(), bytes.len()) } == 0 {
            return Ok(());
        }
        let why = std::io::Error::last_os_error().to_string();
        Err(Error::Lock { bytes: bytes.len(), why })
    }
    #[cfg(not(unix))]
    Err(Error::Lock { bytes: bytes.len(), why: "not on this system".to_owned() })
}

/// Zeroed bytes from a 64-byte boundary on.
#[derive(Debug)]
pub(crate) struct Room {
    bytes: Bytes,
    start: usize,
    len: usize,
}

/// Where they are.
#[derive(Debug)]
enum Bytes {
    Heap(Vec<u8>),
    #[cfg(unix)]
    Pages(Pages),
}

/// Vectors and cache lines.
const ALIGNMENT: usize = 64;

/// The pages that the system grants on request.
#[cfg(unix)]
const HUGE_PAGE: usize = 2 << 20;

impl Room {
    /// `None` where there is not that much memory.
    pub(crate) fn new(len: usize) -> Option<Self> {
        let size = len.checked_add(ALIGNMENT)?;
        // `vec![0; n]` takes fresh pages without touching them, but aborts where there are none:
        // a reservation of the same size finds that out first.
        Vec::<u8>::new().try_reserve_exact(size).ok()?;
        let bytes = vec![0; size];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Some(Self { bytes: Bytes::Heap(bytes), start, len })
    }

    /// As [`Room::new`], in huge pages where the system has them: for what will be filled and then
    /// read over and over, with fewer page faults and address look-ups.
    pub(crate) fn huge(len: usize) -> Option<Self> {
        // An allocator may hand out what was used before, page by page, and clear it on this thread:
        // fresh pages come as they are written, by whoever writes.
        #[cfg(unix)]
        if len >= HUGE_PAGE {
            let pages = Pages::new(len.checked_add(HUGE_PAGE)?)?;
            let start = pages.at.as_ptr().align_offset(HUGE_PAGE);
            #[cfg(target_os = "linux")]
            if HUGE.load(Ordering::Relaxed) {
                let at = pages.at.as_ptr().wrapping_add(start).cast();
                // The rest stays small: it would be a huge page that is hardly used.
                let whole = len / HUGE_PAGE * HUGE_PAGE;
                // SAFETY: the range lies within the pages, and the advice changes no contents. It is
                // only advice: a refusal costs speed and nothing else.
                let _ = unsafe { libc::madvise(at, whole, libc::MADV_HUGEPAGE) };
            }
            return Some(Self { bytes: Bytes::Pages(pages), start, len });
        }
        Self::new(len)
    }
}

impl Deref for Room {
    type Target = [u8];
    #[inline(always)]
    fn deref(&self) -> &[u8] {
        let bytes = match &self.bytes {
            Bytes::Heap(bytes) => bytes,
            #[cfg(unix)]
            Bytes::Pages(pages) => pages.bytes(),
        };
        &bytes[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for Room {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl DerefMut for Room {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [u8] {
        let bytes = match &mut self.bytes {
            Bytes::Heap(bytes) => bytes,
            #[cfg(unix)]
            Bytes::Pages(pages) => pages.bytes_mut(),
        };
        &mut bytes[self.start..self.start + self.len]
    }
}

/// Fresh zeroed pages, given back when this is dropped.
#[cfg(unix)]
#[derive(Debug)]
struct Pages {
    at: ptr::NonNull<u8>,
    len: usize,
}

// SAFETY: the pages are this value's alone, as a vector's bytes are.
#[cfg(unix)]
unsafe impl Send for Pages {}
// SAFETY: shared, they are only read.
#[cfg(unix)]
unsafe impl Sync for Pages {}

#[cfg(unix)]
impl Pages {
    /// `None` where there are not that many.
    fn new(len: usize) -> Option<Self> {
        if len == 0 || len > isize::MAX as usize {
            return None;
        }
        let (access, kind) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANON);
        // SAFETY: pages of no file, where the system wants them: nothing else lies there.
        let at = unsafe { libc::mmap(ptr::null_mut(), len, access, kind, -1, 0) };
        let at = (at != libc::MAP_FAILED).then_some(at.cast())?;
        Some(Self { at: ptr::NonNull::new(at)?, len })
    }

    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        // SAFETY: so many readable bytes lie there as long as this value does, zeros at first.
        unsafe { slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    #[inline(always)]
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; they can be written, and are borrowed from here alone.
        unsafe { slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

#[cfg(unix)]
impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the pages are mapped, and nobody borrows them any more.
        let _ = unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zeroed_aligned_and_writable() {
        for len in [0, 1, 64, 5 << 20] {
            for mut room in [Room::new(len).unwrap(), Room::huge(len).unwrap()] {
                assert_eq!(room.len(), len);
                assert!(room.iter().all(|byte| *byte == 0));
                assert!(room.as_ptr().addr().is_multiple_of(ALIGNMENT));
                room.fill(7);
                assert!(room.iter().all(|byte| *byte == 7));
            }
        }
    }

    #[test]
    fn refuses_what_cannot_be() {
        assert!(Room::new(usize::MAX).is_none());
        assert!(Room::huge(isize::MAX as usize).is_none());
    }
}
