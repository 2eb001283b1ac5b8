use std::marker::PhantomData;

/// A slice that several tasks write to, each at its own places.
#[derive(Clone, Copy)]
pub(crate) struct Output<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: the only way in is `part`, whose callers promise disjoint places.
unsafe impl<T: Send> Sync for Output<'_, T> {}
// SAFETY: as above; the pointer itself has no ties to a thread.
unsafe impl<T: Send> Send for Output<'_, T> {}

impl<'a, T> Output<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// `len` places from `at` on.
    ///
    /// # Safety
    /// No other part that is in use overlaps this one.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // What the safety section is about.
    pub(crate) unsafe fn part(&self, at: usize, len: usize) -> &'a mut [T] {
        assert!(at <= self.len && len <= self.len - at, "{at} + {len} of {}", self.len);
        // SAFETY: within the borrowed slice by the line above, disjoint by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
