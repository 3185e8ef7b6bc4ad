//! What the tests of fused ops share.

use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use rand::{Rng, SeedableRng};

use crate::rng::SeededRng;

/// Numbers in −1..1.
pub fn random(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    let mut rng = SeededRng::seed_from_u64(seed);
    let numbers: Vec<f32> = (0..shape.elem_count()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

/// All numbers, in order.
pub fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Fails where two lists differ by more than `tolerance`, relative to numbers over 1.
pub fn assert_close(a: &[f32], b: &[f32], tolerance: f32, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{what} [{i}]: {a}, expected {b}");
    }
}

/// Checks `fused` against `composed` in value, and in the gradient of every input against both `composed`'s and the
/// central differences of `composed` in f64.
pub fn assert_same_function(
    inputs: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Result<Tensor>,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let expected = composed(inputs).unwrap();
    let actual = fused(inputs).unwrap();
    assert_eq!(actual.dims(), expected.dims());
    assert_close(&flat(&actual), &flat(&expected), 1e-5, "value");

    if expected.elem_count() == 0 {
        return; // candle cuts the graph at an empty product
    }
    // What is differentiated: the outputs' sum, each with a weight of its own.
    let weights = random(expected.shape(), 99);
    let vars: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
    let tracked: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let gradients = |f: &dyn Fn(&[Tensor]) -> Result<Tensor>| -> Vec<Vec<f32>> {
        let loss = (f(&tracked).unwrap() * &weights).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        vars.iter().map(|var| flat(gradients.get(var).expect("a gradient for every input"))).collect()
    };
    let actual = gradients(&fused);
    for (i, (actual, expected)) in actual.iter().zip(gradients(&composed)).enumerate() {
        assert_close(actual, &expected, 1e-5, &format!("gradient of input {i}, by composition"));
    }

    let exact: Vec<Tensor> = inputs.iter().map(|input| input.to_dtype(DType::F64).unwrap()).collect();
    let weights = weights.to_dtype(DType::F64).unwrap();
    let loss = |inputs: &[Tensor]| -> f64 {
        (composed(inputs).unwrap() * &weights).unwrap().sum_all().unwrap().to_scalar().unwrap()
    };
    for (i, actual) in actual.iter().enumerate() {
        const STEP: f64 = 1e-5;
        let numbers: Vec<f64> = exact[i].flatten_all().unwrap().to_vec1().unwrap();
        let mut moved_to = exact.clone();
        let mut at = |j: usize, step: f64| {
            let mut numbers = numbers.clone();
            numbers[j] += step;
            moved_to[i] = Tensor::from_vec(numbers, exact[i].shape(), &Device::Cpu).unwrap();
            loss(&moved_to)
        };
        let differences: Vec<f32> =
            (0..numbers.len()).map(|j| ((at(j, STEP) - at(j, -STEP)) / (2.0 * STEP)) as f32).collect();
        assert_close(actual, &differences, 1e-5, &format!("gradient of input {i}, by differences"));
    }
}
