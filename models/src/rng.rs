//! Seeded randomness. candle's CPU generator cannot be seeded, so every random number comes from here.

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use collimate_protocol::PromptId;

/// The one generator of the project: portable, seedable, and splittable by stream.
pub type SeededRng = ChaCha8Rng;

/// A generator for one purpose within a run. Different purposes never share a stream.
pub fn for_purpose(run_seed: u64, purpose: &str) -> SeededRng {
    let mut rng = SeededRng::seed_from_u64(mix(run_seed, purpose.bytes().fold(0xcbf2_9ce4_8422_2325, fnv1a)));
    rng.set_stream(0);
    rng
}

/// The generator of one response's tokens: a function of the run's seed, the prompt and the sample's index, so
/// that the response depends on no worker count and no order of arrival.
pub fn for_sample(run_seed: u64, prompt_id: PromptId, sample_idx: u32) -> SeededRng {
    let mut rng = SeededRng::seed_from_u64(mix(mix(run_seed, prompt_id.0), u64::from(sample_idx)));
    rng.set_stream(1);
    rng
}

/// Puts items into a random order (Fisher and Yates).
pub fn shuffle<T>(items: &mut [T], rng: &mut SeededRng) {
    rand::seq::SliceRandom::shuffle(items, rng);
}

/// FNV-1a's step (Fowler, Noll, Vo): hashes a purpose's name the same way on every platform.
fn fnv1a(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014) over both words.
fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_add(b.wrapping_mul(0xbf58_476d_1ce4_e5b9));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A tensor of independent normal numbers with mean 0, f32, by Box and Muller's transform.
pub fn normal(rng: &mut SeededRng, shape: &[usize], std: f64, device: &Device) -> candle_core::Result<Tensor> {
    let n: usize = shape.iter().product();
    let mut numbers = Vec::with_capacity(n + 1);
    while numbers.len() < n {
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * std;
        let angle = std::f64::consts::TAU * rng.random::<f64>();
        numbers.push((radius * angle.cos()) as f32);
        numbers.push((radius * angle.sin()) as f32);
    }
    numbers.truncate(n);
    Tensor::from_vec(numbers, shape, device)
}

/// A tensor of independent numbers spread evenly from `-bound` to `bound`, f32.
pub fn uniform(rng: &mut SeededRng, shape: &[usize], bound: f64, device: &Device) -> candle_core::Result<Tensor> {
    let n: usize = shape.iter().product();
    let numbers: Vec<f32> = (0..n).map(|_| (bound * (2.0 * rng.random::<f64>() - 1.0)) as f32).collect();
    Tensor::from_vec(numbers, shape, device)
}
