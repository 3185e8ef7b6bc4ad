//! Gradients of weights, added where they are summed.
//!
//! candle's backward pass makes a tensor of zeros for each parameter and adds each op's gradient to it in a new tensor,
//! on one thread. For a matrix that costs four passes over its memory before an optimiser has seen it. Inside
//! [`GradientSums::gather`] the ops whose argument is a matrix add to its sum instead, and tell candle of none.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, TensorId, bail};

use super::row_sums::RowSums;
use super::storage::tensor;

thread_local! {
    /// Of the backward pass that runs on this thread.
    static GATHERED: RefCell<Option<Arc<GradientSums>>> = const { RefCell::new(None) };
}

/// The sum of one parameter's gradients. A clone is the same sum.
#[derive(Clone, Debug)]
pub struct GradientSum {
    /// What was added.
    pub summed: Summed,
    n_added: Arc<AtomicUsize>,
}

/// How gradients are summed.
#[derive(Clone, Debug)]
pub enum Summed {
    /// In the parameter's shape, contiguous. Without any gradient added, what stands in it means nothing.
    Whole(Tensor),
    /// Of a table on the CPU that [`embed`](super::embed) alone reads.
    Rows(Arc<Mutex<RowSums>>),
}

impl GradientSum {
    /// Of a parameter of the shape of `like`, on its device.
    pub fn new(like: &Tensor) -> Result<Self> {
        Ok(Self { summed: Summed::Whole(like.zeros_like()?), n_added: Arc::default() })
    }

    /// Of a table of the shape of `like`, on the CPU, that [`embed`](super::embed) alone reads.
    pub fn of_rows(like: &Tensor) -> Result<Self> {
        let (n_rows, n_columns) = like.dims2()?;
        let rows = Arc::new(Mutex::new(RowSums::new(n_rows, n_columns)));
        Ok(Self { summed: Summed::Rows(rows), n_added: Arc::default() })
    }

    /// Gradients added since the last [`clear`](Self::clear).
    pub fn n_added(&self) -> usize {
        self.n_added.load(Ordering::Relaxed)
    }

    /// Forgets what was added.
    pub fn clear(&self) {
        self.n_added.store(0, Ordering::Relaxed);
        if let Summed::Rows(rows) = &self.summed {
            rows.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
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

    /// The sum of this parameter's gradients.
    pub fn get(&self, parameter: &Tensor) -> Option<GradientSum> {
        self.0.get(&parameter.id()).cloned()
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
    match sum_of(weight) {
        Some(sum) => {
            let first = sum.count();
            on_whole(&sum, |numbers| add(numbers, first))?;
            Ok(None)
        }
        None => {
            let mut numbers = vec![0.0; weight.elem_count()];
            add(&mut numbers, true);
            tensor(numbers, weight.shape()).map(Some)
        }
    }
}

/// An op's gradient of its argument `table (V, C)`, of which it reads the rows `ids`: `gradients (ids, C)`. As of
/// [`weight_gradient`].
pub fn table_gradient(table: &Tensor, ids: &[u32], gradients: &[f32]) -> Result<Option<Tensor>> {
    let (_, c) = table.dims2()?;
    let by_row = || ids.iter().zip(gradients.chunks_exact(c.max(1)));
    if table.track_op()
        && let Some(sum) = sum_of(table)
        && let Summed::Rows(rows) = &sum.summed
    {
        sum.count();
        let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
        by_row().for_each(|(id, gradient)| rows.add(*id, gradient));
        return Ok(None);
    }
    weight_gradient(table, |sum, first| {
        if first {
            sum.fill(0.0);
        }
        for (&id, gradient) in by_row() {
            sum[id as usize * c..][..c].iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
        }
    })
}

/// Where gradients of this weight are gathered, if they are. Nothing stays borrowed: while an op waits for other threads,
/// this one may take up another pass.
fn sum_of(weight: &Tensor) -> Option<GradientSum> {
    GATHERED.with_borrow(|sums| sums.as_ref().and_then(|sums| sums.get(weight)))
}

/// Calls `edit` with the numbers of a sum of a matrix' gradients.
pub fn on_whole(sum: &GradientSum, edit: impl FnOnce(&mut [f32])) -> Result<()> {
    match &sum.summed {
        Summed::Whole(gradient) => on_numbers(gradient, edit),
        Summed::Rows(_) => bail!("the gradient of a table that is read as a matrix can't be summed by row"),
    }
}

/// Calls `edit` with the numbers of a contiguous f32 tensor on the CPU, to be changed in place.
pub fn on_numbers(tensor: &Tensor, edit: impl FnOnce(&mut [f32])) -> Result<()> {
    tensor.inplace_op1(&OnNumbers(RefCell::new(Some(edit))))
}

struct OnNumbers<F>(RefCell<Option<F>>);

impl<F: FnOnce(&mut [f32])> InplaceOp1 for OnNumbers<F> {
    fn name(&self) -> &'static str {
        "edit numbers in place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(numbers), Some((from, to))) = (storage, layout.contiguous_offsets()) else {
            bail!("an edit in place needs a contiguous f32 tensor");
        };
        if let Some(edit) = self.0.take() {
            edit(&mut numbers[from..to]);
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
            let Summed::Whole(gradient) = &sum.summed else { panic!("it is summed as a whole") };
            for (found, expected) in flat(gradient).iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{found} {expected}");
            }
            // The next step begins anew, over what is left of this one.
            sum.clear();
        }
    }

    #[test]
    fn a_table_that_is_summed_by_row_has_the_same_bits_and_is_no_matrix() {
        let table = Var::from_tensor(&random((5, 3), 1)).unwrap();
        let [whole, by_row] = [GradientSum::new(&table).unwrap(), GradientSum::of_rows(&table).unwrap()];
        let gathered = |sum: &GradientSum, loss: &dyn Fn() -> Result<Tensor>| {
            Arc::new(GradientSums::new([(table.as_tensor(), sum)])).gather(|| loss().unwrap().backward()).map(drop)
        };
        for _ in 0..2 {
            for ids in [[4, 1, 4], [1, 0, 0]] {
                let loss = || embed(&table, &ids)?.sqr()?.sum_all();
                [&whole, &by_row].iter().for_each(|sum| gathered(sum, &loss).unwrap());
            }
            assert_eq!((whole.n_added(), by_row.n_added()), (2, 2));
            let (Summed::Whole(expected), Summed::Rows(rows)) = (&whole.summed, &by_row.summed) else { panic!() };
            assert_eq!(rows.lock().unwrap().part(0..15).unwrap(), flat(expected));
            [&whole, &by_row].iter().for_each(|sum| sum.clear());
        }
        let as_matrix = || linear(&random((2, 3), 3), &table, WeightLayout::OutIn, None)?.sum_all();
        let error = gathered(&by_row, &as_matrix).unwrap_err().to_string();
        assert!(error.contains("read as a matrix"), "{error}");
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
