//! Language-model training: pretraining and SFT differ in their examples alone.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::config::OptimConfig;
use super::microbatch::{NextTokens, cut_by_tokens};
use super::passes::train_passes;
use super::setup::{SkipLimit, StepMetrics, Training, check_length, detached, first_non_finite, parameters_for};
use super::state;
use crate::arch::{HeadKind, LanguageModel, ModelConfig, Weights};
use crate::error::{Error, Result};
use crate::objective::lm_loss;
#[cfg(test)]
use crate::optim::GradAccumulator;
use crate::optim::Schedule;
use crate::passes::training_budget;

/// A sequence to learn from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LmExample {
    /// Token ids: for SFT, prompt and response with its end token.
    pub tokens: Vec<u32>,
    /// The loss is over the tokens of these spans alone, which are in order and don't overlap. The first token is never
    /// learnt.
    pub learnt: Vec<Range<usize>>,
}

impl LmExample {
    /// Text of which every token but the first is learnt.
    pub fn text(tokens: Vec<u32>) -> Self {
        Self::response(tokens, 1)
    }

    /// A prompt of `n_prompt` tokens, and its response, which is learnt.
    pub fn response(tokens: Vec<u32>, n_prompt: usize) -> Self {
        let learnt = vec![n_prompt..tokens.len()];
        Self { tokens, learnt }
    }

    pub(super) fn parts(&self) -> (&[u32], &[Range<usize>]) {
        (&self.tokens, &self.learnt)
    }

    fn n_targets(&self) -> usize {
        self.learnt.iter().map(|span| span.end.saturating_sub(span.start.max(1))).sum()
    }
}

/// Trains a language model by steps.
pub struct LmTrainer {
    model_config: Arc<ModelConfig>,
    model: LanguageModel,
    training: Training,
    schedule: Schedule,
    microbatch_tokens: usize,
    skip_limit: SkipLimit,
    passes_side_by_side: bool,
    n_steps: u64,
}

impl LmTrainer {
    /// Starts from these weights, where they lie. The learning rate's schedule ends after `n_steps` steps.
    pub fn new(model_config: &Arc<ModelConfig>, weights: &Weights, config: &OptimConfig, n_steps: u64) -> Result<Self> {
        config.validate()?;
        let parameters = parameters_for(model_config, HeadKind::Language, weights)?;
        let training =
            Training::new(model_config, HeadKind::Language, parameters, config.adamw(), config.max_grad_norm)?;
        Ok(Self {
            model_config: model_config.clone(),
            model: training.language_model(model_config, config.gradient_checkpointing)?,
            passes_side_by_side: training.passes_side_by_side(model_config, config.gradient_checkpointing),
            training,
            schedule: config.schedule(n_steps),
            microbatch_tokens: training_budget(model_config, config.microbatch_tokens),
            skip_limit: SkipLimit::new(config.max_skipped_in_a_row),
            n_steps: 0,
        })
    }

    /// One optimiser step on the mean loss over the batch's target tokens.
    ///
    /// # Errors
    /// The batch has no target token, or a sequence is longer than the context; too many steps in a row were not
    /// finite.
    pub fn step(&mut self, batch: &[LmExample]) -> Result<StepMetrics> {
        let n_tokens = n_targets(batch);
        if n_tokens == 0 {
            return Err(Error::invalid(format!("a batch of {} examples has no token to learn", batch.len())));
        }
        check_lengths(&self.model_config, batch)?;
        self.training.begin();
        let mut loss = 0.0;
        let microbatches = microbatches(batch, self.microbatch_tokens);
        let passes = microbatches.map(|microbatch| NextTokens::within(microbatch.iter().map(LmExample::parts)));
        let passes: Vec<NextTokens> = passes.filter(|next| !next.targets.is_empty()).collect();
        let (model, training) = (&self.model, &mut self.training);
        let forward = |next: &NextTokens| {
            let part = model.loss_at(&next.packed, &next.rows, &next.targets, 1.0, |_, logprobs| {
                lm_loss(logprobs)? * (1.0 / n_tokens as f64)
            })?;
            let value = f64::from(part.to_scalar::<f32>()?);
            Ok((part, value))
        };
        train_passes(&passes, self.passes_side_by_side, forward, |_, gradients, part| {
            loss += part;
            training.add(gradients)
        })?;
        let grad_norm = self.training.grad_norm()?;
        let lr = self.schedule.lr(self.n_steps);
        self.n_steps += 1;
        let broken = first_non_finite(&[("the loss", loss), ("the gradient", grad_norm)]);
        match broken {
            Some(what) => self.skip_limit.skipped(what)?,
            None => {
                self.training.step(lr, grad_norm)?;
                self.skip_limit.taken();
            }
        }
        Ok(StepMetrics { loss, n_tokens, grad_norm, lr, skipped: broken.is_some() })
    }

    /// Writes a file with everything that training goes on from.
    pub fn save_state(&self, path: &Path) -> Result<()> {
        state::save_one_model(path, &self.training, self.n_steps, &self.skip_limit)
    }

    /// Goes on from a state of the same training, as if it had never ended; returns how many steps that had done.
    ///
    /// # Errors
    /// The file is no whole state, or one of another model: nothing has changed then. Or it can't be read to its end.
    pub fn restore(&mut self, path: &Path) -> Result<u64> {
        self.n_steps = state::restore_one_model(path, &mut self.training, &mut self.skip_limit)?;
        Ok(self.n_steps)
    }

    #[cfg(test)]
    pub(super) fn gradients(&self) -> &GradAccumulator {
        self.training.gradients()
    }

    /// A real copy of the weights as they are now.
    pub fn weights(&self) -> Result<Weights> {
        self.training.parameters().snapshot()
    }

    /// The model as it is now, for evaluation: it records no gradient, and follows further training.
    pub fn model(&self) -> Result<LanguageModel> {
        LanguageModel::new(&self.model_config, &detached(self.training.parameters()))
    }
}

/// Cross-entropy on text that was held out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeldoutNll {
    /// Mean over all target tokens (nats a token); 0 where there are none.
    pub mean: f64,
    /// For each example with a target, its own mean.
    pub per_example: Vec<f64>,
    /// Target tokens.
    pub n_tokens: usize,
}

/// Cross-entropy of each example's target tokens under a model, in passes of `microbatch_tokens`.
pub fn heldout_nll(model: &LanguageModel, examples: &[LmExample], microbatch_tokens: usize) -> Result<HeldoutNll> {
    let mut nll = HeldoutNll::default();
    let mut sum = 0.0;
    for microbatch in microbatches(examples, microbatch_tokens) {
        check_lengths(model.decoder().config(), microbatch)?;
        let next = NextTokens::within(microbatch.iter().map(LmExample::parts));
        if next.targets.is_empty() {
            continue;
        }
        let logprobs = model.logprobs_at(&next.packed, &next.rows, &next.targets, 1.0)?.logprobs;
        for own in next.split(&logprobs.to_vec1::<f32>()?).iter().filter(|own| !own.is_empty()) {
            let own_sum = -own.iter().map(|&logprob| f64::from(logprob)).sum::<f64>();
            nll.per_example.push(own_sum / own.len() as f64);
            nll.n_tokens += own.len();
            sum += own_sum;
        }
    }
    nll.mean = if nll.n_tokens == 0 { 0.0 } else { sum / nll.n_tokens as f64 };
    Ok(nll)
}

fn n_targets(examples: &[LmExample]) -> usize {
    examples.iter().map(LmExample::n_targets).sum()
}

fn microbatches(examples: &[LmExample], budget: usize) -> impl Iterator<Item = &[LmExample]> {
    let runs = cut_by_tokens(examples.iter().map(|example| example.tokens.len()), budget);
    runs.into_iter().map(|run| &examples[run])
}

fn check_lengths(config: &ModelConfig, examples: &[LmExample]) -> Result<()> {
    examples.iter().try_for_each(|example| check_length(config, example.tokens.len()))
}
