//! What the kernels take, each on the shapes of a small model (d 128, 512 tokens of vocabulary) and of a larger one (d 512,
//! 50,257), with the rate that it comes to: tokens, numbers, or multiply-adds a second.
//!
//! `cargo bench -p collimate-examples --bench kernels [NAME]`

use candle_core::{Device, Tensor, Var};
use collimate::process;
use collimate_models::kernels::{
    self, AttentionRule, CacheRow, Gelu, HeadShape, LayerCache, PackedWeight, WeightLayout,
};
use collimate_models::rng;
use divan::Bencher;
use divan::counter::ItemsCount;

fn main() {
    // SAFETY: no other thread runs yet.
    unsafe { process::tune() };
    divan::main();
}

/// (width, heads, vocabulary).
const SMALL: [usize; 3] = [128, 4, 512];
const LARGE: [usize; 3] = [512, 8, 50257];
/// Tokens of a training step.
const N_TOKENS: usize = 1024;
const SEQUENCE_LEN: usize = 128;

fn random(shape: impl Into<candle_core::Shape>) -> Tensor {
    let shape = shape.into();
    rng::normal(&mut rng::for_purpose(1, "bench"), shape.dims(), 0.5, &Device::Cpu).unwrap()
}

fn trained(shape: impl Into<candle_core::Shape>) -> Var {
    Var::from_tensor(&random(shape)).unwrap()
}

/// Tokens of a step of generation.
const ROWS: [usize; 4] = [1, 8, 32, 256];

#[divan::bench(args = ROWS, consts = [128, 512])]
fn mlp_up_packed<const C: usize>(bencher: Bencher, n: usize) {
    let (x, weight) = (random((n, C)), PackedWeight::new(&random((C, 4 * C)), WeightLayout::InOut).unwrap());
    let bencher = bencher.counter(ItemsCount::new(n * C * 4 * C));
    bencher.bench_local(|| kernels::packed_linear(&x, &weight, None).unwrap());
}

#[divan::bench(args = ROWS, consts = [128, 512])]
fn mlp_up_in_out<const C: usize>(bencher: Bencher, n: usize) {
    let (x, weight) = (random((n, C)), random((C, 4 * C)));
    let bencher = bencher.counter(ItemsCount::new(n * C * 4 * C));
    bencher.bench_local(|| kernels::linear(&x, &weight, WeightLayout::InOut, None).unwrap());
}

#[divan::bench(args = ROWS)]
fn unembedding_packed(bencher: Bencher, n: usize) {
    let [c, _, v] = LARGE;
    let (x, weight) = (random((n, c)), PackedWeight::new(&random((v, c)), WeightLayout::OutIn).unwrap());
    let bencher = bencher.counter(ItemsCount::new(n * c * v));
    bencher.bench_local(|| kernels::packed_linear(&x, &weight, None).unwrap());
}

#[divan::bench]
fn packing_an_unembedding(bencher: Bencher) {
    let [c, _, v] = LARGE;
    let weight = random((v, c));
    let bencher = bencher.counter(ItemsCount::new(c * v));
    bencher.bench_local(|| PackedWeight::new(&weight, WeightLayout::OutIn).unwrap());
}

/// A step of generation of this many sequences, 96 tokens into each.
#[divan::bench(args = [1, 8, 32], consts = [128, 512])]
fn cached_attention<const C: usize>(bencher: Bencher, n: usize) {
    let [c, n_heads, _] = if C == SMALL[0] { SMALL } else { LARGE };
    let heads = HeadShape { n_heads, n_kv_heads: n_heads, head_dim: c / n_heads };
    let position = 96;
    let mut caches: Vec<LayerCache> = (0..n).map(|_| LayerCache::new(heads)).collect();
    caches.iter_mut().for_each(|cache| cache.reserve(position + 1));
    let qkv = random((n, heads.qkv_dim()));
    let rows: Vec<CacheRow> = (0..n).map(|sequence| CacheRow { sequence, position }).collect();
    bencher.counter(ItemsCount::new(n * (position + 1) * 2 * c)).bench_local(|| {
        let mut caches: Vec<&mut LayerCache> = caches.iter_mut().collect();
        kernels::cached_attention(&qkv, AttentionRule::causal(heads), &mut caches, &rows).unwrap()
    });
}

#[divan::bench(args = [false, true], consts = [128, 512])]
fn causal_attention<const C: usize>(bencher: Bencher, backward: bool) {
    let [c, n_heads, _] = if C == SMALL[0] { SMALL } else { LARGE };
    let heads = HeadShape { n_heads, n_kv_heads: n_heads, head_dim: c / n_heads };
    let offsets: Vec<usize> = (0..=N_TOKENS).step_by(SEQUENCE_LEN).collect();
    let qkv = trained((N_TOKENS, heads.qkv_dim()));
    bencher.counter(ItemsCount::new(N_TOKENS * SEQUENCE_LEN * c)).bench_local(|| {
        let y = kernels::causal_attention(&qkv, &offsets, AttentionRule::causal(heads)).unwrap();
        backward.then(|| y.backward().unwrap())
    });
}

#[divan::bench(args = [false, true], consts = [128, 512])]
fn token_logprobs<const C: usize>(bencher: Bencher, backward: bool) {
    let [c, _, v] = if C == SMALL[0] { SMALL } else { LARGE };
    let (hidden, unembedding) = (trained((N_TOKENS, c)), trained((v, c)));
    let targets: Vec<u32> = (0..N_TOKENS).map(|i| (i * 7919 % v) as u32).collect();
    bencher.counter(ItemsCount::new(N_TOKENS * c * v)).bench_local(|| {
        let found = kernels::token_logprobs(&hidden, &unembedding, &targets, 1.0).unwrap();
        backward.then(|| found.logprobs.backward().unwrap())
    });
}

#[divan::bench(args = [false, true], consts = [128, 512])]
fn linear_in_training<const C: usize>(bencher: Bencher, backward: bool) {
    let (x, weight) = (trained((N_TOKENS, C)), trained((C, 4 * C)));
    bencher.counter(ItemsCount::new(N_TOKENS * C * 4 * C * if backward { 3 } else { 1 })).bench_local(|| {
        let y = kernels::linear(&x, &weight, WeightLayout::InOut, None).unwrap();
        backward.then(|| y.backward().unwrap())
    });
}

#[divan::bench(args = [8, N_TOKENS])]
fn gelu(bencher: Bencher, n: usize) {
    let x = random((n, 4 * LARGE[0]));
    bencher.counter(ItemsCount::new(x.elem_count())).bench_local(|| kernels::gelu(&x, Gelu::Tanh).unwrap());
}

#[divan::bench(args = [8, N_TOKENS])]
fn layer_norm(bencher: Bencher, n: usize) {
    let (x, weight, bias) = (random((n, LARGE[0])), random(LARGE[0]), random(LARGE[0]));
    let bencher = bencher.counter(ItemsCount::new(x.elem_count()));
    bencher.bench_local(|| kernels::layer_norm(&x, &weight, &bias, 1e-5).unwrap());
}
