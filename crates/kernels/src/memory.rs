//! Large zeroed rooms that become resident as they are written.

use std::sync::atomic::{AtomicBool, Ordering};

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
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

/// Vectors and cache lines.
const ALIGNMENT: usize = 64;

impl Room {
    /// `None` where there is not that much memory.
    pub(crate) fn new(len: usize) -> Option<Self> {
        let size = len.checked_add(ALIGNMENT)?;
        // `vec![0; n]` takes fresh pages without touching them, but aborts where there are none:
        // a reservation of the same size finds that out first.
        Vec::<u8>::new().try_reserve_exact(size).ok()?;
        let bytes = vec![0; size];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Some(Self { bytes, start, len })
    }

    /// As [`Room::new`], in huge pages where the system has them: for what will be filled and then
    /// read over and over, with fewer page faults and address look-ups.
    pub(crate) fn huge(len: usize) -> Option<Self> {
        let room = Self::new(len)?;
        #[cfg(target_os = "linux")]
        if HUGE.load(Ordering::Relaxed) {
            /// The pages that the system grants on request.
            const SIZE: usize = 2 << 20;
            let first = room.bytes.as_ptr().align_offset(SIZE);
            let whole = room.bytes.len().saturating_sub(first) / SIZE * SIZE;
            if whole > 0 {
                let at = room.bytes.as_ptr().wrapping_add(first).cast_mut().cast();
                // SAFETY: the range lies within the vector, and the advice changes no contents. It
                // is only advice: a refusal costs speed and nothing else.
                let _ = unsafe { libc::madvise(at, whole, libc::MADV_HUGEPAGE) };
            }
        }
        Some(room)
    }
}

impl std::ops::Deref for Room {
    type Target = [u8];
    #[inline(always)]
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for Room {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
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
