use super::*;
use crate::kernels::testing::{assert_close, assert_same_function, flat, random};
use crate::kernels::{CacheRow, LayerCache, cached_attention};

const HEADS: HeadShape = HeadShape { n_heads: 4, n_kv_heads: 2, head_dim: 6 };

fn attention(qkv: &[f32], offsets: &[usize], heads: HeadShape) -> Vec<f32> {
    let n = *offsets.last().unwrap();
    flat(
        &causal_attention(&tensor(qkv.to_vec(), (n, heads.qkv_dim())).unwrap(), offsets, AttentionRule::causal(heads))
            .unwrap(),
    )
}

#[test]
fn agrees_with_the_composition_in_value_and_gradient() {
    let each = HeadShape { n_heads: 2, n_kv_heads: 2, head_dim: 3 };
    for (offsets, heads) in [
        (&[0, 1][..], HEADS),
        (&[0, 7, 7, 8, 13], HEADS),
        (&[0, 3, 12], each),
        (&[0, 0], HEADS),
        (&[0, BACKWARD_ROWS + 5], HeadShape { n_heads: 2, n_kv_heads: 1, head_dim: 2 }),
    ] {
        let qkv = (random((*offsets.last().unwrap(), heads.qkv_dim()), 1) * 2.0).unwrap();
        let causal = AttentionRule::causal(heads);
        for rule in [causal, AttentionRule { window: Some(4), scale: 1.0, ..causal }] {
            assert_same_function(
                std::slice::from_ref(&qkv),
                |t| causal_attention(&t[0], offsets, rule),
                |t| composed::causal_attention(&t[0], offsets, rule),
            );
        }
    }
}

#[test]
fn long_sequences_and_wide_heads_agree_with_the_composition() {
    let heads = HeadShape { n_heads: 2, n_kv_heads: 1, head_dim: 40 };
    let offsets = [0, 3, 3 + K_BLOCK + 70];
    let qkv = random((offsets[2], heads.qkv_dim()), 5);
    let gradient = |f: &dyn Fn(&Tensor) -> Result<Tensor>| {
        let var = candle_core::Var::from_tensor(&qkv).unwrap();
        let y = f(&var).unwrap();
        let loss = (&y * random(y.shape(), 6)).unwrap().sum_all().unwrap();
        (flat(&y), flat(loss.backward().unwrap().get(&var).unwrap()))
    };
    for window in [None, Some(K_BLOCK + 9), Some(40)] {
        let rule = AttentionRule { window, ..AttentionRule::causal(heads) };
        let (y, grad) = gradient(&|qkv| causal_attention(qkv, &offsets, rule));
        let (expected, expected_grad) = gradient(&|qkv| composed::causal_attention(qkv, &offsets, rule));
        assert_close(&y, &expected, 2e-6, "value");
        assert_close(&grad, &expected_grad, 1e-5, "gradient");
    }
}

#[test]
fn agrees_with_attention_over_a_cache() {
    let n = 30;
    let qkv = (random((n, HEADS.qkv_dim()), 2) * 2.0).unwrap();
    let rows: Vec<CacheRow> = (0..n).map(|position| CacheRow { sequence: 0, position }).collect();
    let mut cache = LayerCache::new(HEADS);
    cache.reserve(n);
    let cached = cached_attention(&qkv, AttentionRule::causal(HEADS), &mut [&mut cache], &rows).unwrap();
    assert_close(&attention(&flat(&qkv), &[0, n], HEADS), &flat(&cached), 1e-6, "value");
}

#[test]
fn a_row_depends_on_no_other_sequence_on_no_later_row_and_on_no_number_of_threads() {
    let (columns, out) = (HEADS.qkv_dim(), HEADS.out_dim());
    let qkv = flat(&random((150, columns), 3));
    let alone = attention(&qkv[100 * columns..], &[0, 50], HEADS);
    assert_eq!(attention(&qkv, &[0, 13, 100, 150], HEADS)[100 * out..], alone);
    assert_eq!(attention(&qkv[100 * columns..110 * columns], &[0, 10], HEADS), alone[..10 * out]);
    let mut garbage = qkv.clone();
    garbage[..100 * columns].fill(f32::NAN);
    assert_eq!(attention(&garbage, &[0, 100, 150], HEADS)[100 * out..], alone);
    for threads in [1, 2, 4] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| attention(&qkv, &[0, 100, 150], HEADS))[100 * out..], alone);
    }
}

#[test]
fn a_nan_in_one_sequence_stays_out_of_the_others_gradients() {
    let (columns, offsets) = (HEADS.qkv_dim(), [0, 5, 9]);
    let gradient = |first: f32| {
        let mut qkv = flat(&random((9, columns), 4));
        qkv[0] = first;
        let var = candle_core::Var::from_tensor(&tensor(qkv, (9, columns)).unwrap()).unwrap();
        let loss =
            causal_attention(&var, &offsets, AttentionRule::causal(HEADS)).unwrap().sqr().unwrap().sum_all().unwrap();
        flat(loss.backward().unwrap().get(&var).unwrap())
    };
    let (clean, dirty) = (gradient(0.5), gradient(f32::NAN));
    assert!(dirty[0].is_nan());
    assert_eq!(dirty[5 * columns..], clean[5 * columns..]);
}

#[test]
fn offsets_that_do_not_cut_the_rows_are_refused() {
    let qkv = random((4, HEADS.qkv_dim()), 1);
    for offsets in [&[][..], &[0], &[0, 3], &[1, 4], &[0, 3, 2, 4], &[0, 5]] {
        let error = causal_attention(&qkv, offsets, AttentionRule::causal(HEADS)).unwrap_err().to_string();
        assert!(error.contains("do not cut 4 rows"), "{error}");
    }
    assert!(causal_attention(&random((4, 7), 1), &[0, 4], AttentionRule::causal(HEADS)).is_err());
}
