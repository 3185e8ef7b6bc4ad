//! Gradients of weights, added where they are summed.
//!
//! candle's backward pass makes a tensor of zeros for each parameter and adds each op's gradient to it in a new tensor,
//! on one thread. For a matrix that costs four passes over its memory before an optimiser has seen it. Inside
//! [`GradientSums::gather`] the ops whose argument is a matrix add to its sum instead, and tell candle of none.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, TensorId, bail};

use super::storage::tensor;

thread_local! {
    /// Of the backward pass that runs on this thread.
    static GATHERED: RefCell<Option<Arc<GradientSums>>> = const { RefCell::new(None) };
}

/// The sum of one parameter's gradients. A clone is the same sum.
#[derive(Clone, Debug)]
pub struct GradientSum {
    /// In the parameter's shape, contiguous. Without any gradient added, what stands in it means nothing.
    pub gradient: Tensor,
    n_added: Arc<AtomicUsize>,
}

impl GradientSum {
    /// Of a parameter of the shape of `like`, on its device.
    pub fn new(like: &Tensor) -> Result<Self> {
        Ok(Self { gradient: like.zeros_like()?, n_added: Arc::default() })
    }

    /// Gradients added since the last [`clear`](Self::clear).
    pub fn n_added(&self) -> usize {
        self.n_added.load(Ordering::Relaxed)
    }

    /// Forgets what was added.
    pub fn clear(&self) {
        self.n_added.store(0, Ordering::Relaxed);
    }

    /// Counts one more gradient; true for the first.
    pub fn count(&self) -> bool {
        self.n_added.fetch_add(1, Ordering::Relaxed) == 0
    }
}

/// Sums by the tensor that they are the gradient of.
#[derive(Debug, Default)]
pub struct GradientSums(HashMap<TensorId, GradientSum>);

impl GradientSums {
    /// The sums of these parameters: those on the CPU, since no other device's ops gather.
    pub fn new<'a>(parameters: impl IntoIterator<Item = (&'a Tensor, &'a GradientSum)>) -> Self {
        let on_cpu = parameters.into_iter().filter(|(parameter, _)| parameter.device().is_cpu());
        Self(on_cpu.map(|(parameter, sum)| (parameter.id(), sum.clone())).collect())
    }

    /// Runs a backward pass on this thread, whose gradients of matrices go to the sums.
    pub fn gather<R>(self: &Arc<Self>, backward: impl FnOnce() -> R) -> R {
        gathering(Some(self.clone()), backward)
    }
}

/// Runs `work` with these sums, or with none: also where a thread that waits within another pass has taken it up.
fn gathering<R>(sums: Option<Arc<GradientSums>>, work: impl FnOnce() -> R) -> R {
    struct Restore(Option<Arc<GradientSums>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            GATHERED.set(self.0.take());
        }
    }
    let _restore = Restore(GATHERED.replace(sums));
    work()
}

/// Runs a backward pass on this thread that keeps all its gradients to itself.
pub fn gathering_none<R>(backward: impl FnOnce() -> R) -> R {
    gathering(None, backward)
}

/// An op's gradient of its argument `weight`, where it is asked for: added to its sum and `None` where one is gathered.
/// `add(sum, first)` adds it to `sum`, in the weight's shape; where `first`, in place of what stands there.
pub fn weight_gradient(weight: &Tensor, add: impl FnOnce(&mut [f32], bool)) -> Result<Option<Tensor>> {
    if !weight.track_op() {
        return Ok(None);
    }
    // The borrow ends here: while `add` waits for other threads, this one may take up another pass.
    let sum = GATHERED.with_borrow(|sums| sums.as_ref().and_then(|sums| sums.0.get(&weight.id()).cloned()));
    match sum {
        Some(sum) => {
            let first = sum.count();
            sum.gradient.inplace_op1(&OnNumbers(RefCell::new(Some(|numbers: &mut [f32]| add(numbers, first)))))?;
            Ok(None)
        }
        None => {
            let mut numbers = vec![0.0; weight.elem_count()];
            add(&mut numbers, true);
            tensor(numbers, weight.shape()).map(Some)
        }
    }
}

struct OnNumbers<F>(RefCell<Option<F>>);

impl<F: FnOnce(&mut [f32])> InplaceOp1 for OnNumbers<F> {
    fn name(&self) -> &'static str {
        "add to a sum of gradients"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(numbers), Some((from, to))) = (storage, layout.contiguous_offsets()) else {
            bail!("a sum of gradients is not a contiguous f32 tensor");
        };
        if let Some(add) = self.0.take() {
            add(&mut numbers[from..to]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::kernels::testing::{flat, random};
    use crate::kernels::{WeightLayout, embed, linear};

    /// A loss of two matrices, the first of which it reads in three ways.
    fn loss(table: &Tensor, other: &Tensor, factor: f64) -> Result<Tensor> {
        let x = embed(table, &[1, 0, 1])?; // (3, 4)
        let y = linear(&x, table, WeightLayout::OutIn, None)?; // (3, 2)
        let z = linear(&y, table, WeightLayout::InOut, None)?; // (3, 4)
        let all = linear(&z, other, WeightLayout::InOut, None)?;
        all.sqr()?.sum_all()? * factor
    }

    #[test]
    fn what_is_gathered_is_the_sum_of_what_candle_gives() {
        let (table, other) =
            (Var::from_tensor(&random((2, 4), 1)).unwrap(), Var::from_tensor(&random((4, 3), 2)).unwrap());
        let sum = GradientSum::new(&table).unwrap();
        let sums = Arc::new(GradientSums::new([(table.as_tensor(), &sum)]));
        for _ in 0..2 {
            let mut expected = vec![0.0; 8];
            for factor in [1.0, -0.3] {
                let plain = loss(&table, &other, factor).unwrap().backward().unwrap();
                expected.iter_mut().zip(flat(plain.get(&table).unwrap())).for_each(|(sum, g)| *sum += g);
                let gathered = sums.gather(|| loss(&table, &other, factor).unwrap().backward().unwrap());
                assert!(gathered.get(&table).is_none(), "it is in the sum");
                assert_eq!(flat(gathered.get(&other).unwrap()), flat(plain.get(&other).unwrap()), "it has no sum");
            }
            assert_eq!(sum.n_added(), 6);
            for (found, expected) in flat(&sum.gradient).iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{found} {expected}");
            }
            // The next step begins anew, over what is left of this one.
            sum.clear();
        }
    }

    #[test]
    fn a_pass_inside_another_one_keeps_its_gradients_and_leaves_the_other_its_sums() {
        let table = Var::from_tensor(&random((2, 4), 1)).unwrap();
        let sum = GradientSum::new(&table).unwrap();
        let sums = Arc::new(GradientSums::new([(table.as_tensor(), &sum)]));
        let backward = || linear(&random((3, 4), 3), &table, WeightLayout::OutIn, None)?.sum_all()?.backward();
        sums.gather(|| {
            assert!(gathering_none(backward).unwrap().get(&table).is_some());
            assert_eq!(sum.n_added(), 0);
            assert!(backward().unwrap().get(&table).is_none());
        });
        assert_eq!(sum.n_added(), 1);
        assert!(backward().unwrap().get(&table).is_some());
    }
}
