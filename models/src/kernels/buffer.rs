//! Output buffers that are allocated without being cleared, and filled by several threads.

use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// A buffer whose parts are handed out to tasks that never share one.
pub struct Disjoint<'a> {
    start: *mut f32,
    len: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: it gives access to its numbers only through methods whose contract keeps tasks apart.
unsafe impl Sync for Disjoint<'_> {}

impl<'a> Disjoint<'a> {
    /// The parts of `numbers`.
    pub fn over(numbers: &'a mut [f32]) -> Self {
        Self { start: numbers.as_mut_ptr(), len: numbers.len(), lifetime: PhantomData }
    }

    /// The `len` places from `start`, perhaps not written yet; panics past the end.
    ///
    /// # Safety
    /// No two parts that live at the same time overlap.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn places(&self, start: usize, len: usize) -> &mut [MaybeUninit<f32>] {
        assert!(start <= self.len && len <= self.len - start, "{start} + {len} of {}", self.len);
        // SAFETY: within the buffer by the assertion, and not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start).cast(), len) }
    }

    /// The `len` numbers from `start`; panics past the end.
    ///
    /// # Safety
    /// No two parts that live at the same time overlap, and these numbers have been written.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn numbers(&self, start: usize, len: usize) -> &mut [f32] {
        // SAFETY: not aliased and written, by the caller's promise.
        unsafe { self.places(start, len).assume_init_mut() }
    }
}

/// `n` numbers that `fill` writes.
///
/// # Safety
/// `fill` writes every one of them.
#[inline]
pub unsafe fn filled_by(n: usize, fill: impl FnOnce(&Disjoint<'_>)) -> Vec<f32> {
    // SAFETY: the caller's promise, passed on.
    let [numbers] = unsafe { all_filled_by(n, |[numbers]| fill(numbers)) };
    numbers
}

/// Several times `n` numbers that `fill` writes.
///
/// # Safety
/// `fill` writes every one of them.
#[inline]
pub unsafe fn all_filled_by<const M: usize>(n: usize, fill: impl FnOnce(&[Disjoint<'_>; M])) -> [Vec<f32>; M] {
    let mut all: [Vec<f32>; M] = std::array::from_fn(|_| Vec::with_capacity(n));
    fill(&all.each_mut().map(|numbers| Disjoint { start: numbers.as_mut_ptr(), len: n, lifetime: PhantomData }));
    for numbers in &mut all {
        // SAFETY: the capacity is n, and all of it is written by the caller's promise.
        unsafe { numbers.set_len(n) };
    }
    all
}

/// Bytes of a cache line, and of the widest vectors.
const CACHE_LINE: usize = 64;

/// Lends this thread's scratch space: `len` numbers with whatever was left in them, from the start of a cache line on.
/// Not to be nested.
#[inline]
pub fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local!(static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) });
    let mut scratch = SCRATCH.take();
    let room = len + CACHE_LINE / size_of::<f32>();
    if scratch.len() < room {
        scratch.resize(room, 0.0);
    }
    // A vector that lies in two lines is read twice.
    let start = scratch.as_ptr().align_offset(CACHE_LINE);
    let result = f(&mut scratch[start..start + len]);
    SCRATCH.set(scratch);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_space_starts_with_a_cache_line_and_keeps_its_length() {
        for len in [0, 1, 100, 5000, 3] {
            with_scratch(len, |scratch| {
                assert_eq!((scratch.len(), scratch.as_ptr().addr() % CACHE_LINE), (len, 0));
            });
        }
    }

    #[test]
    #[should_panic(expected = "2 + 3 of 4")]
    fn a_part_past_the_end_panics() {
        // SAFETY: nothing is returned, since it panics.
        unsafe { filled_by(4, |parts| _ = parts.places(2, 3)) };
    }
}
