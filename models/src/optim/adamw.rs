//! Adam with decoupled weight decay (Loshchilov and Hutter 2019), in one pass over each parameter.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::PoisonError;

use candle_core::Tensor;
use rayon::prelude::*;

use super::gradients::GradAccumulator;
use super::inplace::{self, CHUNK};
use crate::arch::Parameters;
use crate::error::{Error, Result};
use crate::kernels::{Summed, on_numbers};
use crate::train::Written;

/// AdamW's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the gradient's running mean.
    pub beta1: f64,
    /// Decay of the squared gradient's running mean.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of a matrix that is taken away a step, times the learning rate. Gains and biases do not decay.
    pub weight_decay: f64,
}

/// What a state calls the running means of gradient and squared gradient.
const FIRST: &str = "first_moment";
const SECOND: &str = "second_moment";

enum Moments {
    Cpu { first: Vec<f32>, second: Vec<f32> },
    Device { first: Tensor, second: Tensor },
}

/// AdamW's state: both moments of each parameter, and the number of steps.
pub struct AdamW {
    config: AdamWConfig,
    n_steps: u64,
    moments: BTreeMap<String, Moments>,
}

/// One step's scalars, worked out once in f64.
#[derive(Clone, Copy)]
struct Factors {
    grad_scale: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    /// lr / (1 − β1ᵗ)
    step_size: f32,
    /// √(1 − β2ᵗ)
    root_correction2: f32,
    eps: f32,
    /// 1 − lr · weight_decay
    keep: f32,
}

impl AdamW {
    /// A fresh optimiser: all moments zero.
    pub fn new(parameters: &Parameters, config: AdamWConfig) -> Result<Self> {
        let zero = |(name, var): (&str, &candle_core::Var)| {
            let tensor = var.as_tensor();
            let moments = if tensor.device().is_cpu() {
                let n = tensor.elem_count();
                Moments::Cpu { first: vec![0.0; n], second: vec![0.0; n] }
            } else {
                Moments::Device { first: tensor.zeros_like()?, second: tensor.zeros_like()? }
            };
            Ok((name.to_owned(), moments))
        };
        Ok(Self { config, n_steps: 0, moments: parameters.iter().map(zero).collect::<Result<_>>()? })
    }

    /// How many steps were taken.
    pub fn n_steps(&self) -> u64 {
        self.n_steps
    }

    /// What [`state`](Self::state) calls the moments of a parameter.
    pub(crate) fn names_of_moments(&self, name: &str) -> [String; 2] {
        [format!("{name}.{FIRST}"), format!("{name}.{SECOND}")]
    }

    /// Both moments of each parameter, by the parameter's name and which of the two it is.
    pub(crate) fn state(&self, parameters: &Parameters) -> Result<Vec<(String, Written<'_>)>> {
        let mut state = Vec::with_capacity(2 * self.moments.len());
        for (name, moments) in &self.moments {
            let missing = || Error::MissingTensor { name: name.clone(), path: None };
            let parameter = parameters.get(name).ok_or_else(missing)?.as_tensor();
            let (first, second) = match moments {
                Moments::Cpu { first, second } => {
                    (Written::numbers(first, parameter), Written::numbers(second, parameter))
                }
                Moments::Device { first, second } => (Written::tensor(first), Written::tensor(second)),
            };
            state.extend(self.names_of_moments(name).into_iter().zip([first, second]));
        }
        Ok(state)
    }

    /// Goes on from what [`state`](Self::state) gave after `n_steps` steps. `numbers` finds moments by their name there.
    ///
    /// # Errors
    /// What `numbers` says; some moments may have changed then.
    pub(crate) fn restore(&mut self, n_steps: u64, mut numbers: impl FnMut(&str) -> Result<Vec<f32>>) -> Result<()> {
        for (name, moments) in &mut self.moments {
            let (of_first, of_second) = (format!("{name}.{FIRST}"), format!("{name}.{SECOND}"));
            match moments {
                Moments::Cpu { first, second } => {
                    *first = numbers(&of_first)?;
                    *second = numbers(&of_second)?;
                }
                Moments::Device { first, second } => {
                    *first = Tensor::from_vec(numbers(&of_first)?, first.shape(), first.device())?;
                    *second = Tensor::from_vec(numbers(&of_second)?, second.shape(), second.device())?;
                }
            }
        }
        self.n_steps = n_steps;
        Ok(())
    }

    /// One step along the summed gradients, which are multiplied by `grad_scale` (see
    /// [`clip_factor`](super::clip_factor)). Whether they are finite is for the caller to check first.
    ///
    /// # Errors
    /// Names the first parameter without a gradient; nothing has changed then.
    pub fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &GradAccumulator,
        lr: f64,
        grad_scale: f32,
    ) -> Result<()> {
        if let Some((name, _)) = parameters.iter().find(|(name, _)| gradients.summed(name).is_none()) {
            return Err(Error::NoGradient { name: name.to_owned() });
        }
        self.n_steps += 1;
        for (name, moments) in &mut self.moments {
            let missing = || Error::MissingTensor { name: name.clone(), path: None };
            let var = parameters.get(name).ok_or_else(missing)?;
            let summed = gradients.summed(name).ok_or_else(missing)?;
            let decays = var.as_tensor().rank() >= 2;
            let factors = Factors::of(&self.config, self.n_steps, lr, grad_scale, decays);
            match (moments, summed) {
                (Moments::Cpu { first, second }, Summed::Whole(gradient)) => {
                    inplace::edit(var.as_tensor(), gradient, |parameter, gradient| {
                        let part = |range: Range<usize>| Some(Cow::Borrowed(&gradient[range]));
                        factors.apply_in_chunks(parameter, part, first, second);
                    })?
                }
                (Moments::Cpu { first, second }, Summed::Rows(rows)) => {
                    let rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
                    on_numbers(var.as_tensor(), |parameter| {
                        let part = |range: Range<usize>| rows.part(range).map(Cow::Owned);
                        factors.apply_in_chunks(parameter, part, first, second);
                    })?
                }
                (Moments::Device { first, second }, Summed::Whole(gradient)) => {
                    var.set(&factors.apply_on_device(var, gradient, first, second)?)?
                }
                (Moments::Device { .. }, Summed::Rows(_)) => {
                    return Err(Error::invalid(format!("the gradient of `{name}` is summed by row outside the CPU")));
                }
            }
        }
        Ok(())
    }
}

impl Factors {
    fn of(config: &AdamWConfig, n_steps: u64, lr: f64, grad_scale: f32, decays: bool) -> Self {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = *config;
        let t = n_steps as f64;
        Self {
            grad_scale,
            beta1: beta1 as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            step_size: (lr / (1.0 - beta1.powf(t))) as f32,
            root_correction2: (1.0 - beta2.powf(t)).sqrt() as f32,
            eps: eps as f32,
            keep: if decays { (1.0 - lr * weight_decay) as f32 } else { 1.0 },
        }
    }

    /// `gradient(range)` has the gradient of those numbers; `None` where it is zero.
    fn apply_in_chunks<'a>(
        &self,
        parameter: &mut [f32],
        gradient: impl Fn(Range<usize>) -> Option<Cow<'a, [f32]>> + Sync,
        first: &mut [f32],
        second: &mut [f32],
    ) {
        static ZEROS: [f32; CHUNK] = [0.0; CHUNK];
        let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
        parameter.par_chunks_mut(CHUNK).zip(moments).enumerate().for_each(|(idx, (parameter, (first, second)))| {
            let start = idx * CHUNK;
            let gradient = gradient(start..start + parameter.len()).unwrap_or(Cow::Borrowed(&ZEROS[..parameter.len()]));
            self.apply(parameter, &gradient, first, second);
        });
    }

    fn apply(&self, parameter: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
        let Self { grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, .. } = *self;
        for (((p, &g), m), v) in parameter.iter_mut().zip(gradient).zip(first).zip(second) {
            let g = g * grad_scale;
            *m = beta1 * *m + one_minus_beta1 * g;
            *v = beta2 * *v + one_minus_beta2 * (g * g);
            *p = *p * self.keep - self.step_size * *m / (v.sqrt() / self.root_correction2 + self.eps);
        }
    }

    /// The same as a composition of candle's ops; returns the new parameter.
    fn apply_on_device(
        &self,
        parameter: &Tensor,
        gradient: &Tensor,
        first: &mut Tensor,
        second: &mut Tensor,
    ) -> candle_core::Result<Tensor> {
        let gradient = (gradient * f64::from(self.grad_scale))?;
        *first = ((&*first * f64::from(self.beta1))? + (&gradient * f64::from(self.one_minus_beta1))?)?;
        *second = ((&*second * f64::from(self.beta2))? + (gradient.sqr()? * f64::from(self.one_minus_beta2))?)?;
        let denominator = ((second.sqrt()? / f64::from(self.root_correction2))? + f64::from(self.eps))?;
        let step = (first.div(&denominator)? * f64::from(self.step_size))?;
        (parameter.detach() * f64::from(self.keep))? - step
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::arch::Weights;
    use crate::{kernels, rng};

    const CONFIG: AdamWConfig = AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-5, weight_decay: 0.1 };

    fn parameters(n: usize) -> Result<Parameters> {
        let numbers = rng::normal(&mut rng::for_purpose(1, "test"), &[n, 1], 1.0, &Device::Cpu)?;
        Parameters::from_weights(&Weights::new([("matrix".to_owned(), numbers)].into()))
    }

    /// Steps down Σ x² / 2, whose gradient is x.
    fn steps(parameters: &Parameters, n: usize, lr: f64) -> Result<Vec<f32>> {
        let mut adamw = AdamW::new(parameters, CONFIG)?;
        let mut gradients = GradAccumulator::new(parameters)?;
        let var: &Var = parameters.get("matrix").unwrap();
        for _ in 0..n {
            gradients.clear();
            gradients.add(parameters, vec![(var.as_tensor().sqr()?.sum_all()? * 0.5)?.backward()?])?;
            adamw.step(parameters, &gradients, lr, 1.0)?;
        }
        Ok(var.as_tensor().flatten_all()?.to_vec1()?)
    }

    #[test]
    fn the_result_is_the_same_bits_for_any_number_of_threads() -> Result<()> {
        let with_threads = |n_threads: usize| -> Result<Vec<u32>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            let numbers = pool.install(|| steps(&parameters(3 * CHUNK + 17)?, 3, 1e-2))?;
            Ok(numbers.into_iter().map(f32::to_bits).collect())
        };
        let one = with_threads(1)?;
        assert_eq!(one, with_threads(2)?);
        assert_eq!(one, with_threads(5)?);
        Ok(())
    }

    #[test]
    fn a_table_whose_gradient_is_summed_by_row_takes_the_same_steps() -> Result<()> {
        // Rows that begin in one chunk and end in the next; the last chunk has none that is read.
        let (n_rows, n_columns) = (2 * CHUNK / 60, 90);
        let table = rng::normal(&mut rng::for_purpose(1, "test"), &[n_rows, n_columns], 1.0, &Device::Cpu)?;
        let weights = Weights::new([("table".to_owned(), table)].into());
        let stepped = |tables: &[&str]| -> Result<(Vec<u32>, u64)> {
            let parameters = Parameters::from_weights(&weights)?;
            let mut adamw = AdamW::new(&parameters, CONFIG)?;
            let mut gradients = GradAccumulator::with_tables(&parameters, tables)?;
            let mut norm = 0.0;
            for ids in [[0, 181, 182, 7], [182, 364, 0, 0], [1, 1, 1, 1]] {
                gradients.clear();
                let table = parameters.get("table").unwrap().as_tensor();
                let left = gradients.gather(|| kernels::embed(table, &ids)?.sqr()?.sum_all()?.backward())?;
                gradients.add(&parameters, vec![left])?;
                norm += gradients.norm()?;
                adamw.step(&parameters, &gradients, 1e-2, 0.5)?;
            }
            let numbers: Vec<f32> = parameters.get("table").unwrap().as_tensor().flatten_all()?.to_vec1()?;
            Ok((numbers.into_iter().map(f32::to_bits).collect(), norm.to_bits()))
        };
        assert_eq!(stepped(&["table"])?, stepped(&[])?);
        Ok(())
    }

    #[test]
    fn a_learning_rate_of_zero_changes_no_bit() -> Result<()> {
        let parameters = parameters(100)?;
        let before: Vec<f32> = parameters.get("matrix").unwrap().as_tensor().flatten_all()?.to_vec1()?;
        assert_eq!(steps(&parameters, 3, 0.0)?, before);
        Ok(())
    }

    #[test]
    fn the_composition_for_other_devices_computes_the_same() -> Result<()> {
        let factors = Factors::of(&CONFIG, 3, 1e-2, 0.5, true);
        let tensor = |seed| rng::normal(&mut rng::for_purpose(seed, "test"), &[40], 1.0, &Device::Cpu);
        let (parameter, gradient) = (tensor(1)?, tensor(2)?);
        let (mut first, mut second) = (tensor(3)?, tensor(4)?.sqr()?);
        let (mut p, g) = (parameter.to_vec1::<f32>()?, gradient.to_vec1::<f32>()?);
        let (mut m, mut v) = (first.to_vec1::<f32>()?, second.to_vec1::<f32>()?);
        factors.apply(&mut p, &g, &mut m, &mut v);
        let composed = factors.apply_on_device(&parameter, &gradient, &mut first, &mut second)?;
        for (fused, composed) in [(p, composed), (m, first), (v, second)] {
            for (a, b) in fused.iter().zip(composed.to_vec1::<f32>()?) {
                assert!((a - b).abs() < 1e-6, "{a} against {b}");
            }
        }
        Ok(())
    }
}
