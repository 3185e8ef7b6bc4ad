use candle_core::Device;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};

use super::*;
use crate::kernels::composed;
use crate::kernels::tile::K_BLOCK;
use crate::rng::SeededRng;

const HEADS: HeadShape = HeadShape { n_heads: 4, n_kv_heads: 2, head_dim: 6 };

fn causal() -> AttentionRule {
    AttentionRule::causal(HEADS)
}

fn random_rows(n: usize, heads: HeadShape, seed: u64) -> Vec<f32> {
    let mut rng = SeededRng::seed_from_u64(seed);
    (0..n * heads.qkv_dim()).map(|_| rng.random_range(-2.0..2.0)).collect()
}

fn tensor(rows: &[f32], heads: HeadShape) -> Tensor {
    Tensor::from_slice(rows, (rows.len() / heads.qkv_dim(), heads.qkv_dim()), &Device::Cpu).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn cache(n_positions: usize, heads: HeadShape) -> LayerCache {
    let mut cache = LayerCache::new(heads);
    cache.reserve(n_positions);
    cache
}

/// Attention of these rows, which follow what the caches hold.
fn attend(rows: &[f32], rule: AttentionRule, caches: &mut [&mut LayerCache], at: &[(usize, usize)]) -> Vec<f32> {
    let at: Vec<CacheRow> = at.iter().map(|&(sequence, position)| CacheRow { sequence, position }).collect();
    flat(&cached_attention(&tensor(rows, rule.heads), rule, caches, &at).unwrap())
}

fn positions(range: std::ops::Range<usize>) -> Vec<(usize, usize)> {
    range.map(|position| (0, position)).collect()
}

fn assert_prefill_and_decode_agree(rule: AttentionRule, n: usize, n_prompt: usize, seed: u64) {
    let heads = rule.heads;
    let rows = random_rows(n, heads, seed);
    let whole = flat(&composed::causal_attention(&tensor(&rows, heads), &[0, n], rule).unwrap());
    let mut cache = cache(n, heads);
    let cut = n_prompt * heads.qkv_dim();
    let mut out = attend(&rows[..cut], rule, &mut [&mut cache], &positions(0..n_prompt));
    for (i, row) in rows[cut..].chunks(heads.qkv_dim()).enumerate() {
        out.extend(attend(row, rule, &mut [&mut cache], &[(0, n_prompt + i)]));
    }
    assert!(out.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-5), "{out:?} {whole:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn prefill_then_decode_agrees_with_attention_over_the_whole_sequence(
        n in 2_usize..150,
        prompt in 0.0_f64..1.0,
        n_kv_heads in 1_usize..3,
        group in 1_usize..9,
        head_dim in prop::sample::select(vec![2_usize, 6, 32, 40, 64]),
        window in prop::option::of(1_usize..150),
        seed: u64,
    ) {
        let heads = HeadShape { n_heads: n_kv_heads * group, n_kv_heads, head_dim };
        let rule = AttentionRule { window, scale: 0.4, heads };
        assert_prefill_and_decode_agree(rule, n, 1 + (prompt * (n - 1) as f64) as usize, seed);
    }
}

#[test]
fn heads_wider_and_sequences_longer_than_a_block_of_terms_are_summed_to_the_end() {
    let heads = HeadShape { n_heads: 1, n_kv_heads: 1, head_dim: K_BLOCK + 3 };
    assert_prefill_and_decode_agree(AttentionRule { window: None, scale: 0.01, heads }, 5, 4, 1);
    let heads = HeadShape { n_heads: 1, n_kv_heads: 1, head_dim: 4 };
    assert_prefill_and_decode_agree(AttentionRule::causal(heads), K_BLOCK + 5, K_BLOCK + 2, 1);
}

#[test]
fn a_sequence_depends_on_no_other_and_on_nothing_that_stood_there_before() {
    let rows = random_rows(4, HEADS, 2);
    let alone = attend(&rows, causal(), &mut [&mut cache(8, HEADS)], &positions(0..4));

    let (mut other, mut used) = (cache(8, HEADS), cache(8, HEADS));
    let garbage = vec![f32::NAN; 8 * HEADS.qkv_dim()];
    attend(&garbage, causal(), &mut [&mut used], &positions(0..8));
    let mut both = garbage[..2 * HEADS.qkv_dim()].to_vec();
    both.extend(&rows);
    let at: Vec<(usize, usize)> = [(0, 0), (0, 1)].into_iter().chain((0..4).map(|position| (1, position))).collect();
    let mixed = attend(&both, causal(), &mut [&mut other, &mut used], &at);
    assert_eq!(alone, mixed[2 * HEADS.out_dim()..]);
}

#[test]
fn a_cache_that_grows_and_one_that_is_copied_keep_what_they_hold() {
    let (n, growth) = (LayerCache::GROWTH + 4, LayerCache::GROWTH + 3);
    let rows = random_rows(n, HEADS, 4);
    let (known, last) = rows.split_at((n - 1) * HEADS.qkv_dim());
    let (first, next) = known.split_at(3 * HEADS.qkv_dim());
    let mut grown = cache(3, HEADS);
    attend(first, causal(), &mut [&mut grown], &positions(0..3));
    grown.reserve(growth);
    assert_eq!(grown.capacity(), 2 * LayerCache::GROWTH);
    attend(next, causal(), &mut [&mut grown], &positions(3..n - 1));
    let mut copied = cache(n, HEADS);
    copied.copy_from(&grown, n - 1);
    let whole = attend(&rows, causal(), &mut [&mut cache(n, HEADS)], &positions(0..n));
    for mut cache in [grown, copied] {
        cache.reserve(n);
        let out = attend(last, causal(), &mut [&mut cache], &[(0, n - 1)]);
        assert_eq!(out, whole[(n - 1) * HEADS.out_dim()..]);
    }
}

#[test]
fn rows_outside_the_caches_are_refused() {
    let mut cache = cache(2, HEADS);
    let rows = tensor(&random_rows(1, HEADS, 3), HEADS);
    let mut refusal =
        |at: &[CacheRow]| cached_attention(&rows, causal(), &mut [&mut cache], at).unwrap_err().to_string();
    assert!(refusal(&[CacheRow { sequence: 1, position: 0 }]).contains("of none of 1 sequences"));
    assert!(refusal(&[CacheRow { sequence: 0, position: 64 }]).contains("outside a cache of 64 positions"));
    assert!(refusal(&[]).contains("expected (0, 48)"));
}
