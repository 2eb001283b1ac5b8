//! The job holds one tensor at a time, however many there are.

// A test that counts what is allocated has to be an allocator.
#![allow(unsafe_code)]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use common::{Case, Sizes, Source, out, recipe};
use lathe_base::Silent;

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator as it is; only counters are added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn memory_stays_below_four_times_the_largest_coded_tensor() {
    let source = Source::sized(&Sizes { width: 512, feed_forward: 2048, layers: 9, tied: true });
    for format in ["q8_0", "int4_asym_g32", "nf4_dq", "f32"] {
        let case = Case::new(&source.path(), &recipe(format)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let out = out(&folder, &case.plan);
        let before = HELD.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        case.run(&out, 2, &Silent).unwrap();
        let peak = PEAK.load(Ordering::Relaxed) - before;
        let largest = case.plan.largest().0 as usize;
        // Headers, the journal, rows and sums beside the tensors.
        let small = 512 << 10;
        assert!(peak < 4 * largest + small, "{format}: {peak} at the peak, largest {largest}");
        assert!(case.plan.bytes().0 as usize > 8 * largest, "the model is much larger than that");
    }
}
