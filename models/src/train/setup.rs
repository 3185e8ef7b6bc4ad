//! What all trainers share: a model's parameters with their optimiser, and the rule for steps that are not finite.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Tensor;
use candle_core::backprop::GradStore;

use super::passes::PassGradients;
use crate::arch::{BlockGradients, Decoder, HeadKind, LanguageModel, ModelConfig, Parameters, ScalarModel, Weights};
use crate::error::{Error, Result};
use crate::optim::{AdamW, AdamWConfig, GradAccumulator, clip_factor};
use crate::{kernels, passes};

/// What one optimiser step did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepMetrics {
    /// Loss before the step: a token for language models (nats), a prompt for reward models. Not finite where that is
    /// why the step was skipped.
    pub loss: f64,
    /// Tokens that the loss is over; for reward models, tokens that went through the model.
    pub n_tokens: usize,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Whether nothing was changed, because loss or gradient was not finite.
    pub skipped: bool,
}

/// Starts training from `weights`: every parameter that the config asks for, in its shape, and nothing else.
///
/// # Errors
/// Names the first tensor that is missing, has another shape, or is not part of the model.
pub fn parameters_for(config: &ModelConfig, head: HeadKind, weights: &Weights) -> Result<Parameters> {
    weights.check(config, head, None)?;
    Parameters::from_weights(weights)
}

/// Views of weights in training that record no gradient: for passes that only look.
pub(crate) fn detached(parameters: &Parameters) -> Weights {
    parameters.weights().detached()
}

/// Refuses a sequence that is longer than the model's context.
pub(crate) fn check_length(config: &ModelConfig, n_tokens: usize) -> Result<()> {
    if n_tokens <= config.context_len {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "a sequence has {n_tokens} tokens, but the model's context holds {}",
        config.context_len
    )))
}

/// A model's parameters with what trains them.
pub(crate) struct Training {
    parameters: Parameters,
    gradients: GradAccumulator,
    adamw: AdamW,
    max_grad_norm: f64,
    /// Whether gradients of matrices are added where they come up. Small ones, of passes that may run side by side, come
    /// out of a pass and are added then, with checkpointing too: the order of additions shows in the bits.
    gathers: bool,
    /// Where checkpointed blocks leave their gradients.
    block_gradients: BlockGradients,
    /// Whether somebody may have the parameters' very tensors, which then must not change.
    is_published: AtomicBool,
}

impl Training {
    /// Of a model of this shape with this head.
    pub(crate) fn new(
        model: &ModelConfig,
        head: HeadKind,
        parameters: Parameters,
        config: AdamWConfig,
        max_grad_norm: f64,
    ) -> Result<Self> {
        let n_bytes = size_of::<f32>() * parameters.iter().map(|(_, var)| var.elem_count()).sum::<usize>();
        let gathers = n_bytes as u64 > passes::SMALL_WEIGHTS;
        // An unembedding is read as a matrix, also where it is the embedding.
        let is_table = gathers && (head == HeadKind::Scalar || !model.tied);
        let embedding = model.embedding_name();
        let tables = is_table.then_some(embedding.as_str());
        let gradients = GradAccumulator::with_tables(&parameters, tables.as_slice())?;
        let adamw = AdamW::new(&parameters, config)?;
        let block_gradients = BlockGradients::default();
        let is_published = AtomicBool::new(false);
        Ok(Self { parameters, gradients, adamw, max_grad_norm, gathers, block_gradients, is_published })
    }

    /// The language model over the parameters, which records gradients.
    pub(crate) fn language_model(&self, config: &Arc<ModelConfig>, checkpointing: bool) -> Result<LanguageModel> {
        let model = LanguageModel::new(config, &self.parameters.weights())?;
        check_checkpointing(checkpointing, model.decoder())?;
        let model = match self.gradients.sum_of(model.unembedding()).filter(|_| self.gathers) {
            Some(sum) => model.with_unembedding_sum(sum),
            None => model,
        };
        Ok(if checkpointing { model.with_checkpointing(&self.block_gradients) } else { model })
    }

    /// The scalar model over the parameters, which records gradients.
    pub(crate) fn scalar_model(&self, config: &Arc<ModelConfig>, checkpointing: bool) -> Result<ScalarModel> {
        let model = ScalarModel::new(config, &self.parameters.weights())?;
        check_checkpointing(checkpointing, model.decoder())?;
        Ok(if checkpointing { model.with_checkpointing(&self.block_gradients) } else { model })
    }

    pub(crate) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    pub(crate) fn adamw(&self) -> &AdamW {
        &self.adamw
    }

    pub(crate) fn adamw_mut(&mut self) -> &mut AdamW {
        &mut self.adamw
    }

    #[cfg(test)]
    pub(crate) fn gradients(&self) -> &GradAccumulator {
        &self.gradients
    }

    /// The weights as they are now, which never change: they are not copied, but training goes on with copies, once
    /// [`part`](Self::part) is called. Until the next step they are in memory once.
    pub(crate) fn publish(&self) -> Weights {
        self.is_published.store(true, Ordering::Relaxed);
        detached(&self.parameters)
    }

    /// Parts from what was published, if anything was since the last call: the parameters become copies. Whether they did:
    /// then models over them are to be made anew.
    pub(crate) fn part(&mut self) -> Result<bool> {
        if !self.is_published.swap(false, Ordering::Relaxed) {
            return Ok(false);
        }
        self.parameters = Parameters::from_weights(&self.parameters.weights())?;
        self.gradients.follow(&self.parameters);
        Ok(true)
    }

    /// Refuses a change of what was published.
    pub(crate) fn check_parted(&self) -> Result<()> {
        match self.is_published.load(Ordering::Relaxed) {
            true => Err(Error::invalid("weights that were published would change")),
            false => Ok(()),
        }
    }

    /// Forgets the gradients of the step before.
    pub(crate) fn begin(&mut self) {
        self.gradients.clear();
    }

    /// Whether threads are to take a pass each: where the model is small. Gradients of checkpointed blocks, of which a
    /// backward pass has only a part itself, would mix.
    pub(crate) fn passes_side_by_side(&self, config: &ModelConfig, checkpointing: bool) -> bool {
        let is_on_cpu = self.parameters.weights().device().is_cpu();
        is_on_cpu && passes::are_shared_out(config) && !self.gathers && !checkpointing
    }

    /// Adds the gradient of a part of the loss.
    pub(crate) fn add(&mut self, gradients: PassGradients) -> Result<()> {
        let stores = match gradients {
            PassGradients::Done(store) => vec![store],
            PassGradients::Due(loss) => {
                let mut stores = vec![match self.gathers {
                    true => self.gradients.gather(|| loss.backward())?,
                    false => loss.backward()?,
                }];
                stores.extend(self.block_gradients.take());
                stores
            }
        };
        self.gradients.add(&self.parameters, stores)
    }

    /// Global norm of what was added.
    pub(crate) fn grad_norm(&self) -> Result<f64> {
        self.gradients.norm()
    }

    /// One optimiser step, clipped by the norm that [`grad_norm`](Self::grad_norm) gave.
    pub(crate) fn step(&mut self, lr: f64, grad_norm: f64) -> Result<()> {
        self.check_parted()?;
        self.adamw.step(&self.parameters, &self.gradients, lr, clip_factor(grad_norm, self.max_grad_norm))
    }
}

/// The gradients of a part of a loss, added nowhere.
pub(crate) fn backward_apart(loss: &Tensor) -> Result<GradStore> {
    Ok(kernels::gathering_none(|| loss.backward())?)
}

/// Refuses what a step would fail at.
fn check_checkpointing(checkpointing: bool, decoder: &Decoder) -> Result<()> {
    if checkpointing && !decoder.device().is_cpu() {
        return Err(Error::invalid(format!(
            "`gradient_checkpointing` is true, and is implemented on the CPU alone; training is on {:?}",
            decoder.device().location()
        )));
    }
    Ok(())
}

/// Counts skipped steps, and ends the training after too many in a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SkipLimit {
    n_in_a_row: usize,
    limit: usize,
}

impl SkipLimit {
    pub(crate) fn new(limit: usize) -> Self {
        Self { n_in_a_row: 0, limit }
    }

    /// Steps skipped in a row until now.
    pub(crate) fn n_in_a_row(&self) -> usize {
        self.n_in_a_row
    }

    /// Goes on after so many skipped steps in a row.
    pub(crate) fn restore(&mut self, n_in_a_row: usize) {
        self.n_in_a_row = n_in_a_row;
    }

    /// A step was taken.
    pub(crate) fn taken(&mut self) {
        self.n_in_a_row = 0;
    }

    /// A step was skipped, because `what` was not finite.
    pub(crate) fn skipped(&mut self, what: &str) -> Result<()> {
        self.n_in_a_row += 1;
        if self.n_in_a_row >= self.limit {
            return Err(Error::NonFinite { n_in_a_row: self.n_in_a_row, what: what.to_owned() });
        }
        Ok(())
    }
}

/// The first of these numbers that is not finite.
pub(crate) fn first_non_finite<'a>(numbers: &[(&'a str, f64)]) -> Option<&'a str> {
    numbers.iter().find(|(_, number)| !number.is_finite()).map(|(name, _)| *name)
}
