//! Cutting work into tasks.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::buffer::{Disjoint, all_filled_by};
use super::simd;

/// Work on fewer numbers than this, some 10 µs of elementwise arithmetic, is not worth a second thread.
pub const PARALLEL_NUMBERS: usize = 1 << 15;

/// Numbers of one task of [`map`].
const MAP_BLOCK: usize = 1 << 13;

/// Elements that [`map`] takes side by side, in arrays: slices would be checked at each element, which keeps the compiler
/// from making vectors of them.
const LANES: usize = 16;

/// Runs `task` on each block of `block_len` of `n` things, which are `n_numbers` numbers in all; on several threads
/// where that is worth it.
pub fn for_each_block(n: usize, block_len: usize, n_numbers: usize, task: impl Fn(Range<usize>) + Sync + Send) {
    let task = |block_idx: usize| task(block_idx * block_len..n.min((block_idx + 1) * block_len));
    let n_blocks = n.div_ceil(block_len);
    if n_numbers < PARALLEL_NUMBERS {
        (0..n_blocks).for_each(task);
    } else {
        share_out(n_blocks, task);
    }
}

/// Runs `task` on each of `0..n` on all threads. Each takes the next one when it has done one, in order, so that all end at
/// about the same time whatever else their cores are doing.
pub fn share_out(n: usize, task: impl Fn(usize) + Sync + Send) {
    let next = AtomicUsize::new(0);
    let take_turns = |_| {
        loop {
            match next.fetch_add(1, Ordering::Relaxed) {
                i if i < n => task(i),
                _ => break,
            }
        }
    };
    (0..rayon::current_num_threads().min(n)).into_par_iter().with_max_len(1).for_each(take_turns);
}

/// `f` of each element of the inputs, which have one length. `f` must be `#[inline(always)]`, for
/// [`simd::dispatch`].
pub fn map<const N: usize, const M: usize>(
    inputs: [&[f32]; N],
    f: impl Fn([f32; N]) -> [f32; M] + Sync + Send,
) -> [Vec<f32>; M] {
    let n = inputs[0].len();
    let fill = |outputs: &[Disjoint<'_>; M]| {
        for_each_block(n, MAP_BLOCK, n, |block| {
            let inputs = inputs.map(|input| &input[block.clone()]);
            // SAFETY: each block is one task's.
            let mut outputs = outputs.each_ref().map(|output| unsafe { output.places(block.start, block.len()) });
            simd::dispatch(
                #[inline(always)]
                || {
                    let n_whole = block.len() / LANES * LANES;
                    for start in (0..n_whole).step_by(LANES) {
                        let inputs = inputs.map(
                            #[inline(always)]
                            |input| lanes(&input[start..]),
                        );
                        let outputs = outputs.each_mut().map(
                            #[inline(always)]
                            |output| lanes_mut(&mut output[start..]),
                        );
                        map_lanes(inputs, outputs, &f);
                    }
                    // The tail goes through lanes too, so that an element's bits depend on no place.
                    let n_tail = block.len() - n_whole;
                    let (mut tail, mut results) = ([[0.0; LANES]; N], [[MaybeUninit::new(0.0); LANES]; M]);
                    for (tail, input) in tail.iter_mut().zip(inputs) {
                        tail[..n_tail].copy_from_slice(&input[n_whole..]);
                    }
                    map_lanes(tail.each_ref(), results.each_mut(), &f);
                    for (output, results) in outputs.iter_mut().zip(&results) {
                        output[n_whole..].copy_from_slice(&results[..n_tail]);
                    }
                },
            );
        });
    };
    // SAFETY: the blocks cover all elements, and each is written.
    unsafe { all_filled_by(n, fill) }
}

#[inline(always)]
fn lanes(numbers: &[f32]) -> &[f32; LANES] {
    numbers.first_chunk().expect("a whole chunk")
}

#[inline(always)]
fn lanes_mut(places: &mut [MaybeUninit<f32>]) -> &mut [MaybeUninit<f32>; LANES] {
    places.first_chunk_mut().expect("a whole chunk")
}

#[inline(always)]
fn map_lanes<const N: usize, const M: usize>(
    inputs: [&[f32; LANES]; N],
    outputs: [&mut [MaybeUninit<f32>; LANES]; M],
    f: &impl Fn([f32; N]) -> [f32; M],
) {
    for lane in 0..LANES {
        let mut values = [0.0; N];
        for n in 0..N {
            values[n] = inputs[n][lane];
        }
        let values = f(values);
        for m in 0..M {
            outputs[m][lane].write(values[m]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_is_run_once_by_any_number_of_threads() {
        for n_threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            for n in [0, 1, 3, 100] {
                let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                pool.install(|| {
                    share_out(n, |i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    })
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{n_threads} {n}");
            }
        }
    }

    #[test]
    fn every_element_is_mapped_once_whatever_the_length() {
        for n in [0, 1, 1000, PARALLEL_NUMBERS + 3] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let [sums, products] = map([&x, &x], |[a, b]| [a + b, a * b]);
            assert!(x.iter().zip(&sums).all(|(x, sum)| *sum == 2.0 * x));
            assert!(x.iter().zip(&products).all(|(x, product)| *product == x * x));
            assert_eq!((sums.len(), products.len()), (n, n));
        }
    }
}
