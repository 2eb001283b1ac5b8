//! The job holds one tensor at a time, however many there are.

// A test that counts what is allocated has to be an allocator.
#![allow(unsafe_code)]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use common::{Case, Sizes, Source, out, recipe};
use lathe_base::Silent;
use lathe_formats::Effort;
use lathe_quantizers::{Calibration, Gptq, Quantizer};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// Held by the test that counts.
static ALONE: Mutex<()> = Mutex::new(());

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

/// What a calibrated job holds at its peak, and what it announced, page sizes and code left out.
fn peak_of(case: &Case, quantizer: &dyn Quantizer, data: &Calibration) -> (usize, usize) {
    /// What the estimate sets aside for code, stacks and the allocator.
    const FIXED: usize = 48 << 20;
    let announced = case.estimate(quantizer, data).peak.0 as usize - FIXED;
    let folder = tempfile::tempdir().unwrap();
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    case.calibrate_with(quantizer, &out(&folder, &case.plan), data, &Silent).unwrap();
    (PEAK.load(Ordering::Relaxed) - before, announced)
}

#[test]
fn a_calibrated_job_stays_within_what_it_announced() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let source = Source::sized(&Sizes { width: 512, feed_forward: 1536, layers: 2, tied: true });
    let sequence = |s: u32| (0..64).map(|i| 3 + (i * i * 5 + i * 11 + s * 17) % 90).collect();
    let data = Calibration::of((0..40).map(sequence).collect(), "test");
    for format in ["int4_g128", "q4_0", "nf4"] {
        let mut case = Case::new(&source.path(), &recipe(format)).unwrap();
        let quick = Gptq { passes: 0, effort: Effort::Nearest, ..Gptq::default() };
        let (usual, announced) = peak_of(&case, &quick, &data);
        // Journals, file buffers and rows are not counted to the byte.
        let small = 1 << 20;
        assert!(usual < announced + small, "{format}: {usual} of {announced}");
        assert!(2 * usual > announced, "{format}: {announced} is announced for {usual}");
        case.max_memory = Some(case.least_memory(&data));
        let (least, capped) = peak_of(&case, &quick, &data);
        assert!(least < capped + small, "{format}: {least} of {capped}");
        assert!(least < usual && capped < announced, "{format}: fewer tokens at once");
    }
}

#[test]
fn memory_stays_below_four_times_the_largest_coded_tensor() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
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
