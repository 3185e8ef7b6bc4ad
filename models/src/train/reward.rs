//! Reward-model training: from rankings to a scalar a response.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;

use super::config::OptimConfig;
use super::microbatch::cut_by_tokens;
use super::passes::train_passes;
use super::setup::{SkipLimit, StepMetrics, Training, check_length, detached, first_non_finite, parameters_for};
use super::state;
use crate::arch::{HeadKind, ModelConfig, PackedSequences, SCORE_BIAS, ScalarModel, Weights};
use crate::error::{Error, Result};
use crate::objective::{n_pairs_right, ranking_loss};
#[cfg(test)]
use crate::optim::GradAccumulator;
use crate::optim::Schedule;
use crate::passes::{over_sequences, training_budget};

/// K responses to one prompt, ranked: one element of a batch, never divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankedResponses {
    /// K sequences: the prompt and one response each.
    pub sequences: Vec<Vec<u32>>,
    /// For each its rank; 1 is best, equal ranks are a tie.
    pub ranks: Vec<u32>,
}

impl RankedResponses {
    fn n_tokens(&self) -> usize {
        self.sequences.iter().map(Vec::len).sum()
    }

    fn check(&self) -> Result<()> {
        let (k, n_ranks) = (self.sequences.len(), self.ranks.len());
        if k < 2 || n_ranks != k {
            return Err(Error::invalid(format!(
                "a comparison has {k} responses and {n_ranks} ranks, expected at least 2 responses with a rank each"
            )));
        }
        Ok(())
    }
}

/// Trains a reward model by steps.
pub struct RewardTrainer {
    model_config: Arc<ModelConfig>,
    model: ScalarModel,
    training: Training,
    schedule: Schedule,
    microbatch_tokens: usize,
    skip_limit: SkipLimit,
    passes_side_by_side: bool,
    n_steps: u64,
}

impl RewardTrainer {
    /// Starts from these weights, where they lie. The learning rate's schedule ends after `n_steps` steps.
    pub fn new(model_config: &Arc<ModelConfig>, weights: &Weights, config: &OptimConfig, n_steps: u64) -> Result<Self> {
        config.validate()?;
        let parameters = parameters_for(model_config, HeadKind::Scalar, weights)?;
        let training = Training::new(model_config, HeadKind::Scalar, parameters, config.adamw(), config.max_grad_norm)?;
        Ok(Self {
            model_config: model_config.clone(),
            model: training.scalar_model(model_config, config.gradient_checkpointing)?,
            passes_side_by_side: training.passes_side_by_side(model_config, config.gradient_checkpointing),
            training,
            schedule: config.schedule(n_steps),
            microbatch_tokens: training_budget(model_config, config.microbatch_tokens),
            skip_limit: SkipLimit::new(config.max_skipped_in_a_row),
            n_steps: 0,
        })
    }

    /// One optimiser step on the mean ranking loss over the batch's prompts.
    ///
    /// # Errors
    /// The batch is empty, an element makes no sense, or a sequence is longer than the context; too many steps in a
    /// row were not finite.
    pub fn step(&mut self, batch: &[RankedResponses]) -> Result<StepMetrics> {
        if batch.is_empty() {
            return Err(Error::invalid("a batch has no comparison to learn from"));
        }
        batch.iter().try_for_each(RankedResponses::check)?;
        self.training.begin();
        let mut loss = 0.0;
        let passes = cut_by_tokens(batch.iter().map(RankedResponses::n_tokens), self.microbatch_tokens);
        let (model, training) = (&self.model, &mut self.training);
        let forward = |run: &Range<usize>| {
            let part = (summed_loss(model, &batch[run.clone()])? * (1.0 / batch.len() as f64))?;
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
        let n_tokens = batch.iter().map(RankedResponses::n_tokens).sum();
        Ok(StepMetrics { loss, n_tokens, grad_norm, lr, skipped: broken.is_some() })
    }

    /// Shifts the bias so that these sequences score 0 on average, and returns the bias.
    ///
    /// # Errors
    /// There are no demonstrations, or their mean score is not finite.
    pub fn shift_bias(&mut self, demonstrations: &[Vec<u32>]) -> Result<f32> {
        if demonstrations.is_empty() {
            return Err(Error::invalid("there are no demonstrations whose mean score could be shifted to 0"));
        }
        let scores = score_sequences(&self.model()?, demonstrations, self.microbatch_tokens)?;
        let mean = scores.iter().map(|&score| f64::from(score)).sum::<f64>() / scores.len() as f64;
        if !mean.is_finite() {
            return Err(Error::invalid(format!(
                "the demonstrations' mean score is {mean}, so it can't be shifted to 0"
            )));
        }
        let missing = || Error::MissingTensor { name: SCORE_BIAS.to_owned(), path: None };
        let var = self.training.parameters().get(SCORE_BIAS).ok_or_else(missing)?;
        let bias = (f64::from(var.as_tensor().squeeze(0)?.to_scalar::<f32>()?) - mean) as f32;
        var.set(&Tensor::new(&[bias], var.as_tensor().device())?)?;
        Ok(bias)
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
    pub fn model(&self) -> Result<ScalarModel> {
        ScalarModel::new(&self.model_config, &detached(self.training.parameters()))
    }
}

/// Scores `(S,)` of sequences, each read at its last token: the last row it has, whatever token stands there.
fn scores_of(model: &ScalarModel, sequences: &[&[u32]]) -> Result<Tensor> {
    model.scalars_of(&last_hidden(model, sequences)?)
}

/// What the head reads of sequences: the hidden state `(S, C)` at the last token of each.
fn last_hidden(model: &ScalarModel, sequences: &[&[u32]]) -> Result<Tensor> {
    for sequence in sequences {
        check_length(model.decoder().config(), sequence.len())?;
        if sequence.is_empty() {
            return Err(Error::invalid("an empty sequence has no last token to be scored at"));
        }
    }
    let packed = PackedSequences::new(sequences);
    let last_rows: Vec<u32> = packed.offsets[1..].iter().map(|&end| (end - 1) as u32).collect();
    model.hidden_at(&packed, &last_rows)
}

/// What a reward model makes of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceFeatures {
    /// The hidden state that its head reads, `(C,)`.
    pub hidden: Vec<f32>,
    /// The score.
    pub score: f32,
}

/// Hidden states and scores of sequences, each read at its last token, in passes of `microbatch_tokens`.
pub fn sequence_features<S: AsRef<[u32]>>(
    model: &ScalarModel,
    sequences: &[S],
    microbatch_tokens: usize,
) -> Result<Vec<SequenceFeatures>> {
    let sequences: Vec<&[u32]> = sequences.iter().map(AsRef::as_ref).collect();
    let mut features = Vec::with_capacity(sequences.len());
    for run in cut_by_tokens(sequences.iter().map(|sequence| sequence.len()), microbatch_tokens) {
        let hidden = last_hidden(model, &sequences[run])?; // (S, C)
        let scores = model.scalars_of(&hidden)?.to_vec1::<f32>()?;
        let states = hidden.to_vec2::<f32>()?.into_iter().zip(scores);
        features.extend(states.map(|(hidden, score)| SequenceFeatures { hidden, score }));
    }
    Ok(features)
}

/// Sum of the ranking losses of whole prompts, in one pass.
fn summed_loss(model: &ScalarModel, prompts: &[RankedResponses]) -> Result<Tensor> {
    let sequences: Vec<&[u32]> = prompts.iter().flat_map(|p| p.sequences.iter().map(Vec::as_slice)).collect();
    let scores = scores_of(model, &sequences)?;
    let mut losses = Vec::with_capacity(prompts.len());
    let mut first = 0;
    for prompt in prompts {
        let k = prompt.ranks.len();
        losses.push(ranking_loss(&scores.narrow(0, first, k)?, &prompt.ranks)?);
        first += k;
    }
    Ok(Tensor::stack(&losses, 0)?.sum_all()?)
}

/// Scores of sequences, each read at its last token, in passes of `microbatch_tokens`.
pub fn score_sequences<S: AsRef<[u32]>>(
    model: &ScalarModel,
    sequences: &[S],
    microbatch_tokens: usize,
) -> Result<Vec<f32>> {
    let sequences: Vec<&[u32]> = sequences.iter().map(AsRef::as_ref).collect();
    let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.len()).collect();
    let passes = over_sequences(model.decoder(), &lengths, microbatch_tokens, |run| {
        Ok(scores_of(model, &sequences[run])?.to_vec1::<f32>()?)
    })?;
    Ok(passes.concat())
}

/// How well a reward model orders what labelers ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairAccuracy {
    /// Share of pairs ordered as the ranks do, over all pairs; 0 where there are none. Equal scores are half right.
    pub mean: f64,
    /// Standard error of the mean, over prompts, whose pairs stand and fall together.
    pub stderr: f64,
    /// Pairs; ties are none.
    pub n_pairs: usize,
}

/// Accuracy over the pairs of these comparisons, in passes of `microbatch_tokens`.
pub fn pair_accuracy(
    model: &ScalarModel,
    comparisons: &[RankedResponses],
    microbatch_tokens: usize,
) -> Result<PairAccuracy> {
    comparisons.iter().try_for_each(RankedResponses::check)?;
    let sequences: Vec<&[u32]> = comparisons.iter().flat_map(|c| c.sequences.iter().map(Vec::as_slice)).collect();
    let scores = score_sequences(model, &sequences, microbatch_tokens)?;
    let mut rest = scores.as_slice();
    let prompts: Vec<(f64, usize)> = comparisons
        .iter()
        .map(|comparison| {
            let (own, others) = rest.split_at(comparison.ranks.len());
            rest = others;
            n_pairs_right(own, &comparison.ranks)
        })
        .filter(|&(_, n_pairs)| n_pairs > 0)
        .collect();
    Ok(accuracy_over_prompts(&prompts))
}

/// The ratio estimator's mean and standard error (Cochran 1977, section 2.11) from (right, pairs) of each prompt.
fn accuracy_over_prompts(prompts: &[(f64, usize)]) -> PairAccuracy {
    let n_pairs = prompts.iter().map(|&(_, pairs)| pairs).sum::<usize>();
    if n_pairs == 0 {
        return PairAccuracy::default();
    }
    let mean = prompts.iter().map(|&(right, _)| right).sum::<f64>() / n_pairs as f64;
    let n = prompts.len() as f64;
    let stderr = if prompts.len() < 2 {
        0.0
    } else {
        let residuals = prompts.iter().map(|&(right, pairs)| (right - mean * pairs as f64).powi(2)).sum::<f64>();
        (residuals / (n - 1.0) / n).sqrt() / (n_pairs as f64 / n)
    };
    PairAccuracy { mean, stderr, n_pairs }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_is_over_pairs_and_its_error_over_prompts() {
        // Right shares 1, 0, 1, 0 of one pair each: mean 1/2, standard error √(1/3)/√4.
        let accuracy = accuracy_over_prompts(&[(1.0, 1), (0.0, 1), (1.0, 1), (0.0, 1)]);
        assert_eq!((accuracy.mean, accuracy.n_pairs), (0.5, 4));
        assert!((accuracy.stderr - (1.0f64 / 3.0).sqrt() / 2.0).abs() < 1e-12);
        assert_eq!(accuracy_over_prompts(&[]), PairAccuracy::default());
        assert_eq!(accuracy_over_prompts(&[(2.0, 3)]).stderr, 0.0);
    }
}
