//! The exponential moving average of the weights: what InstructGPT evaluates and ships.

use rayon::prelude::*;

use super::inplace::{self, CHUNK};
use crate::arch::{Parameters, Weights};
use crate::error::Result;

/// `average ← decay · average + (1 − decay) · weights`, once after every optimiser step. It starts from the weights
/// at construction, and needs no correction for that: they are the model that training starts from.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    average: Weights,
}

impl Ema {
    /// An average that begins as the weights are now; `None` for a decay of 0, which would only copy them.
    pub fn new(parameters: &Parameters, decay: f64) -> Result<Option<Self>> {
        if decay == 0.0 {
            return Ok(None);
        }
        Ok(Some(Self { decay, average: parameters.snapshot()? }))
    }

    /// Takes in the weights as they are now.
    pub fn update(&mut self, parameters: &Parameters) -> Result<()> {
        let (decay, rest) = (self.decay as f32, (1.0 - self.decay) as f32);
        for (name, var) in parameters.iter() {
            let average = self.average.get(name)?;
            if average.device().is_cpu() {
                inplace::edit(average, var.as_tensor(), |average, weights| {
                    average.par_chunks_mut(CHUNK).zip(weights.par_chunks(CHUNK)).for_each(|(average, weights)| {
                        average.iter_mut().zip(weights).for_each(|(a, w)| *a = decay * *a + rest * w);
                    });
                })?;
            } else {
                let next = ((average * self.decay)? + (var.as_tensor().detach() * (1.0 - self.decay))?)?;
                self.average.insert(name, next);
            }
        }
        Ok(())
    }

    /// Goes on from another average.
    pub fn restore(&mut self, average: Weights) {
        self.average = average;
    }

    /// The average as it is now.
    pub fn average(&self) -> &Weights {
        &self.average
    }

    /// A real copy of the average.
    pub fn weights(&self) -> Result<Weights> {
        self.average.deep_copy()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn the_average_follows_the_weights_at_its_decay() -> Result<()> {
        let tensor = |x: f32| Tensor::new(&[x], &Device::Cpu);
        let parameters = Parameters::from_weights(&Weights::new([("w".to_owned(), tensor(1.0)?)].into()))?;
        let mut ema = Ema::new(&parameters, 0.75)?.expect("a decay above 0");
        parameters.get("w").unwrap().set(&tensor(5.0)?)?;
        ema.update(&parameters)?;
        assert_eq!(ema.weights()?.get("w")?.to_vec1::<f32>()?, [2.0]); // 0.75 · 1 + 0.25 · 5
        ema.update(&parameters)?;
        assert_eq!(ema.weights()?.get("w")?.to_vec1::<f32>()?, [2.75]);
        Ok(())
    }

    #[test]
    fn a_decay_of_zero_turns_it_off() -> Result<()> {
        let weights = Weights::new([("w".to_owned(), Tensor::new(&[1f32], &Device::Cpu)?)].into());
        assert!(Ema::new(&Parameters::from_weights(&weights)?, 0.0)?.is_none());
        Ok(())
    }
}
