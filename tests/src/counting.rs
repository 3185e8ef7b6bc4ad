//! An allocator that counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

/// The system's allocator, which counts the bytes that are in use. For a test file of its own: whatever runs at the same
/// time counts too.
#[derive(Debug)]
pub struct Counting {
    in_use: AtomicU64,
    peak: AtomicU64,
}

impl Counting {
    /// Nothing is in use yet.
    #[expect(clippy::new_without_default, reason = "it is made as a static")]
    pub const fn new() -> Self {
        Self { in_use: AtomicU64::new(0), peak: AtomicU64::new(0) }
    }

    /// Bytes in use.
    pub fn in_use(&self) -> u64 {
        self.in_use.load(Ordering::Relaxed)
    }

    /// The most since [`forget_peak`](Self::forget_peak).
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// Measures the peak from now on; returns what is in use.
    pub fn forget_peak(&self) -> u64 {
        let in_use = self.in_use();
        self.peak.store(in_use, Ordering::Relaxed);
        in_use
    }
}

// SAFETY: every call is the system allocator's, with what it was given.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = self.in_use.fetch_add(layout.size() as u64, Ordering::Relaxed) + layout.size() as u64;
        self.peak.fetch_max(in_use, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        self.in_use.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(at, layout) }
    }
}
