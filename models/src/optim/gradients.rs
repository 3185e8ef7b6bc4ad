//! Gradients, summed over microbatches.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use rayon::prelude::*;

use super::inplace::{self, CHUNK};
use crate::arch::Parameters;
use crate::error::{Error, Result};
use crate::kernels::{GradientSum, GradientSums, RowSums, Summed};

/// The sum of a step's gradients, by parameter. Its memory is taken once and used again for every step.
///
/// A loss is normalised by its whole batch *before* `backward`, so that gradients only ever need adding and how the
/// batch was cut into microbatches does not matter.
pub struct GradAccumulator {
    sums: BTreeMap<String, GradientSum>,
    /// The same, for the ops that add to them.
    gathered: Arc<GradientSums>,
}

impl GradAccumulator {
    /// An empty sum for these parameters.
    pub fn new(parameters: &Parameters) -> Result<Self> {
        Self::with_tables(parameters, &[])
    }

    /// An empty sum for these parameters, of which those named in `tables` are read by row alone, in passes that are
    /// [gathered](Self::gather): of their gradients the rows that were read take memory, and no others.
    pub fn with_tables(parameters: &Parameters, tables: &[&str]) -> Result<Self> {
        let empty = |(name, var): (&str, &Var)| {
            let by_row = tables.contains(&name) && var.device().is_cpu();
            let sum = if by_row { GradientSum::of_rows(var)? } else { GradientSum::new(var)? };
            Ok((name.to_owned(), sum))
        };
        let sums = parameters.iter().map(empty).collect::<Result<_>>()?;
        let mut gradients = Self { sums, gathered: Arc::default() };
        gradients.follow(parameters);
        Ok(gradients)
    }

    /// Gathers the gradients of these parameters from now on: the same, or copies of them.
    pub fn follow(&mut self, parameters: &Parameters) {
        let sums = self.sums.iter().filter_map(|(name, sum)| Some((parameters.get(name)?.as_tensor(), sum)));
        self.gathered = Arc::new(GradientSums::new(sums));
    }

    /// The sum of this parameter's gradients, if those of ops on it are [gathered](Self::gather).
    pub(crate) fn sum_of(&self, parameter: &Tensor) -> Option<GradientSum> {
        self.gathered.get(parameter)
    }

    /// Forgets what was added, for the next step.
    pub fn clear(&mut self) {
        self.sums.values().for_each(GradientSum::clear);
    }

    /// Runs a backward pass on this thread, in which gradients of matrices are added as they come up. What it returns has
    /// the others, for [`add`](Self::add).
    pub fn gather(&self, backward: impl FnOnce() -> candle_core::Result<GradStore>) -> candle_core::Result<GradStore> {
        self.gathered.gather(backward)
    }

    /// Adds the gradients of one `backward`. Each parameter has its gradient in one of the stores, or has been
    /// [gathered](Self::gather).
    pub fn add(&mut self, parameters: &Parameters, mut gradients: Vec<GradStore>) -> Result<()> {
        for (name, sum) in &mut self.sums {
            let var = parameters.get(name).ok_or_else(|| Error::MissingTensor { name: name.clone(), path: None })?;
            let Some(gradient) = gradients.iter_mut().find_map(|store| store.remove(var)) else { continue };
            let first = sum.count();
            let Summed::Whole(sum_so_far) = &mut sum.summed else {
                return Err(Error::invalid(format!("the gradient of `{name}` is summed by row, but was not gathered")));
            };
            if gradient.device().is_cpu() {
                inplace::edit(sum_so_far, &gradient, |sum, gradient| {
                    sum.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK)).for_each(|(sum, gradient)| {
                        if first {
                            sum.copy_from_slice(gradient);
                        } else {
                            sum.iter_mut().zip(gradient).for_each(|(sum, gradient)| *sum += gradient);
                        }
                    });
                })?;
            } else {
                *sum_so_far = if first { gradient } else { (&*sum_so_far + gradient)? };
            }
        }
        Ok(())
    }

    /// Global L2 norm of the sum. It is finite exactly if every gradient is.
    ///
    /// # Errors
    /// Names the first parameter that no `backward` since the last [`clear`](Self::clear) reached: candle drops
    /// gradients without a word where an op has no backward.
    pub fn norm(&self) -> Result<f64> {
        let mut square = 0.0;
        for (name, sum) in &self.sums {
            if sum.n_added() == 0 {
                return Err(Error::NoGradient { name: name.clone() });
            }
            square += match &sum.summed {
                Summed::Whole(gradient) => sum_of_squares(gradient)?,
                Summed::Rows(rows) => rows_sum_of_squares(&rows.lock().unwrap_or_else(PoisonError::into_inner)),
            };
        }
        Ok(square.sqrt())
    }

    /// What was added for this parameter; `None` if nothing was since the last [`clear`](Self::clear).
    pub(super) fn summed(&self, name: &str) -> Option<&Summed> {
        self.sums.get(name).filter(|sum| sum.n_added() > 0).map(|sum| &sum.summed)
    }

    /// The summed gradient of this parameter; `None` if it has got none since the last [`clear`](Self::clear).
    #[cfg(test)]
    pub fn get(&self, name: &str) -> Option<Tensor> {
        match self.summed(name)? {
            Summed::Whole(gradient) => Some(gradient.clone()),
            Summed::Rows(rows) => {
                let rows = rows.lock().unwrap();
                let numbers = rows.part(0..rows.n_numbers()).unwrap_or_else(|| vec![0.0; rows.n_numbers()]);
                Some(Tensor::from_vec(numbers, rows.dims(), &candle_core::Device::Cpu).unwrap())
            }
        }
    }
}

/// What gradients of this global norm are multiplied by so that their norm does not exceed `max_norm`; 1 where
/// `max_norm` is 0 (no clipping). The 1e-6 is PyTorch's (`clip_grad_norm_`).
pub fn clip_factor(norm: f64, max_norm: f64) -> f32 {
    if max_norm == 0.0 { 1.0 } else { (max_norm / (norm + 1e-6)).min(1.0) as f32 }
}

/// Σ x², in f64, so that no finite f32 overflows it.
fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    if !tensor.device().is_cpu() {
        return Ok(f64::from(tensor.sqr()?.sum_all()?.to_scalar::<f32>()?));
    }
    let (storage, layout) = tensor.storage_and_layout();
    let (candle_core::Storage::Cpu(storage), Some((from, to))) = (&*storage, layout.contiguous_offsets()) else {
        return Err(Error::invalid("a summed gradient is not a contiguous tensor on the CPU"));
    };
    let partial: Vec<f64> = storage.as_slice::<f32>()?[from..to].par_chunks(CHUNK).map(chunk_sum_of_squares).collect();
    Ok(partial.iter().sum())
}

/// The same bits as of the whole table.
fn rows_sum_of_squares(rows: &RowSums) -> f64 {
    let n = rows.n_numbers();
    let starts: Vec<usize> = (0..n).step_by(CHUNK).collect();
    let of_chunk =
        |start: &usize| rows.part(*start..n.min(start + CHUNK)).map_or(0.0, |part| chunk_sum_of_squares(&part));
    let partial: Vec<f64> = starts.par_iter().map(of_chunk).collect();
    partial.iter().sum()
}

fn chunk_sum_of_squares(chunk: &[f32]) -> f64 {
    // Eight sums side by side: one would wait for each addition to end before the next.
    let mut lanes = [0f64; 8];
    let (groups, rest) = chunk.as_chunks::<8>();
    for group in groups {
        for (lane, &x) in lanes.iter_mut().zip(group) {
            *lane += f64::from(x) * f64::from(x);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::arch::Weights;

    fn parameters(tensors: &[(&str, Vec<f32>)]) -> Result<Parameters> {
        let tensors = tensors
            .iter()
            .map(|(name, numbers)| Ok((name.to_string(), Tensor::new(numbers.as_slice(), &Device::Cpu)?)))
            .collect::<Result<_>>()?;
        Parameters::from_weights(&Weights::new(tensors))
    }

    /// Σ c·x over these parameters, whose gradient is c everywhere.
    fn weighted_sum(parameters: &Parameters, names: &[&str], c: f64) -> Result<GradStore> {
        let mut loss = Tensor::new(0f32, &Device::Cpu)?;
        for name in names {
            loss = (loss + (parameters.get(name).unwrap().as_tensor().sum_all()? * c)?)?;
        }
        Ok(loss.backward()?)
    }

    #[test]
    fn gradients_of_several_backward_passes_add_up_until_cleared() -> Result<()> {
        let parameters = parameters(&[("a", vec![0.0; 3]), ("b", vec![0.0; 1])])?;
        let mut sum = GradAccumulator::new(&parameters)?;
        sum.add(&parameters, vec![weighted_sum(&parameters, &["a", "b"], 1.0)?])?;
        sum.add(&parameters, vec![weighted_sum(&parameters, &["a"], 2.0)?])?;
        assert_eq!(sum.get("a").unwrap().to_vec1::<f32>()?, [3.0, 3.0, 3.0]);
        assert_eq!(sum.get("b").unwrap().to_vec1::<f32>()?, [1.0]);
        assert!((sum.norm()? - 28f64.sqrt()).abs() < 1e-12);

        sum.clear();
        assert!(sum.get("a").is_none());
        sum.add(&parameters, vec![weighted_sum(&parameters, &["a", "b"], 5.0)?])?;
        assert_eq!(sum.get("a").unwrap().to_vec1::<f32>()?, [5.0, 5.0, 5.0]);
        Ok(())
    }

    #[test]
    fn a_parameter_without_a_gradient_is_an_error_by_name() -> Result<()> {
        let parameters = parameters(&[("reached", vec![0.0]), ("unreached", vec![0.0])])?;
        let mut sum = GradAccumulator::new(&parameters)?;
        sum.add(&parameters, vec![weighted_sum(&parameters, &["reached"], 1.0)?])?;
        let error = sum.norm().unwrap_err().to_string();
        assert!(error.contains("`unreached`"), "{error}");
        Ok(())
    }

    #[test]
    fn a_single_non_finite_gradient_shows_in_the_norm_and_a_huge_one_does_not_overflow() -> Result<()> {
        let parameters = parameters(&[("a", vec![0.0; 70_000])])?;
        let norm_with = |number: f32| -> Result<f64> {
            let mut factors = vec![1f32; 70_000];
            factors[69_999] = number;
            let factors = Tensor::new(factors, &Device::Cpu)?;
            let loss = (parameters.get("a").unwrap().as_tensor() * factors)?.sum_all()?;
            let mut sum = GradAccumulator::new(&parameters)?;
            sum.add(&parameters, vec![loss.backward()?])?;
            sum.norm()
        };
        assert!((norm_with(1.0)? - 70_000f64.sqrt()).abs() < 1e-9);
        assert!(norm_with(3e38)?.is_finite());
        assert!(!norm_with(f32::NAN)?.is_finite());
        assert!(!norm_with(f32::INFINITY)?.is_finite());
        Ok(())
    }

    #[test]
    fn clipping_scales_to_the_largest_norm_allowed_and_leaves_the_rest_alone() {
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(4.0, 0.0), 1.0);
    }
}
