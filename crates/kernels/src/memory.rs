//! Large zeroed rooms that become resident as they are written.

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
        {
            /// The pages that the system grants on request.
            const HUGE: usize = 2 << 20;
            let first = room.bytes.as_ptr().align_offset(HUGE);
            let whole = room.bytes.len().saturating_sub(first) / HUGE * HUGE;
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
