//! What stands on the decoder: a language model's unembedding, or one scalar a position.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::checkpointing::BlockGradients;
use super::config::ModelConfig;
use super::decoder::Decoder;
use super::packed::PackedSequences;
use super::precision::Precision;
use super::weights::Weights;
use crate::error::Result;
use crate::kernels::{self, GradientSum, PackedWeight, TokenLogprobs, WeightLayout};

/// The scalar head's weight `(1, C)`, as `…ForSequenceClassification` names it.
pub const SCORE_WEIGHT: &str = "score.weight";
/// The scalar head's bias `(1,)`. On disk it is `score_bias` in `config.json`, since HuggingFace's head has none.
pub const SCORE_BIAS: &str = "score.bias";

/// A decoder with an unembedding: policy and reference.
#[derive(Clone, Debug)]
pub struct LanguageModel {
    decoder: Decoder,
    unembedding: Tensor, // (V, C)
    /// Where losses add the unembedding's gradient.
    unembedding_sum: Option<GradientSum>,
    precision: Precision,
}

impl LanguageModel {
    /// Over weights in training, or any others.
    pub fn new(config: &Arc<ModelConfig>, weights: &Weights) -> Result<Self> {
        Self::on(Decoder::new(config, weights)?, weights)
    }

    /// Over these weights themselves, of which it makes no copy, recording no gradient: for passes of many tokens.
    pub fn frozen(config: &Arc<ModelConfig>, weights: &Weights) -> Result<Self> {
        Self::new(config, &weights.detached())
    }

    fn on(decoder: Decoder, weights: &Weights) -> Result<Self> {
        let config = decoder.config();
        let unembedding = match config.tied {
            true => decoder.embedding().clone(),
            false => weights.get(config.family.names().unembedding)?.clone(),
        };
        Ok(Self { decoder, unembedding, unembedding_sum: None, precision: weights.precision() })
    }

    /// See [`Decoder::with_checkpointing`].
    pub fn with_checkpointing(mut self, gradients: &BlockGradients) -> Self {
        self.decoder = self.decoder.with_checkpointing(gradients);
        self
    }

    /// Whose [losses](Self::loss_at) add the unembedding's gradient to this sum at once: it is they that are to be
    /// differentiated then, and no multiple of them.
    pub(crate) fn with_unembedding_sum(mut self, sum: GradientSum) -> Self {
        self.unembedding_sum = Some(sum);
        self
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The unembedding `(V, C)`.
    pub fn unembedding(&self) -> &Tensor {
        &self.unembedding
    }

    /// Log-probabilities of `targets[i]` as the next token after packed row `rows[i]`. `temperature` divides the
    /// logits. Logits are computed for these rows alone, and never held for all of them at once.
    pub fn logprobs_at(
        &self,
        packed: &PackedSequences,
        rows: &[u32],
        targets: &[u32],
        temperature: f32,
    ) -> Result<TokenLogprobs> {
        let hidden = self.decoder.forward_packed_at(packed, rows)?; // (R, C)
        let unembedding = self.precision.matrix(&self.unembedding)?;
        Ok(kernels::token_logprobs(&hidden, &unembedding, targets, 1.0 / temperature)?)
    }

    /// A loss that is a sum over the targets, each one's share a function of its log-probability as
    /// [`logprobs_at`](Self::logprobs_at) has it: `loss(i, logprobs)` gives the share of `targets[i]`. In training it costs
    /// less than a loss of `logprobs_at`: see [`kernels::token_loss`].
    pub fn loss_at(
        &self,
        packed: &PackedSequences,
        rows: &[u32],
        targets: &[u32],
        temperature: f32,
        loss: impl FnMut(Range<usize>, &Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<Tensor> {
        let hidden = self.decoder.forward_packed_at(packed, rows)?; // (R, C)
        let unembedding = self.precision.matrix(&self.unembedding)?;
        // A copy in another precision passes its gradient on itself.
        let sum = self.unembedding_sum.as_ref().filter(|_| unembedding.id() == self.unembedding.id());
        Ok(kernels::token_loss(&hidden, &unembedding, targets, 1.0 / temperature, sum, loss)?)
    }
}

/// A decoder with an unembedding that gives all logits of a few rows at a time: what a generator samples with.
#[derive(Clone, Debug)]
pub struct GenerationModel {
    decoder: Decoder,
    unembedding: Unembedding,
}

#[derive(Clone, Debug)]
enum Unembedding {
    /// `(V, C)`.
    Stored(Tensor),
    Packed(PackedWeight),
}

impl GenerationModel {
    /// Over weights that no longer change, of which it makes copies laid out for speed, unless they are a base's.
    pub fn new(config: &Arc<ModelConfig>, weights: &Weights) -> Result<Self> {
        let mut model = Self::stored(config, weights)?;
        model.lay_out(weights)?;
        Ok(model)
    }

    /// Takes these weights instead. The copies of the old ones are gone before the new ones are made.
    pub fn set_weights(&mut self, weights: &Weights) -> Result<()> {
        *self = Self::stored(self.decoder.config(), weights)?;
        self.lay_out(weights)
    }

    fn stored(config: &Arc<ModelConfig>, weights: &Weights) -> Result<Self> {
        let LanguageModel { decoder, unembedding, precision, .. } = LanguageModel::frozen(config, weights)?;
        Ok(Self { decoder, unembedding: Unembedding::Stored(precision.matrix(&unembedding)?) })
    }

    fn lay_out(&mut self, weights: &Weights) -> Result<()> {
        if let Unembedding::Stored(weight) = &self.unembedding
            && !weights.has_base()
        {
            self.unembedding = Unembedding::Packed(PackedWeight::new(weight, WeightLayout::OutIn)?);
        }
        self.decoder.lay_out()
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Logits `(N, V)` of hidden states `(N, C)`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(match &self.unembedding {
            Unembedding::Packed(weight) => kernels::packed_linear(hidden, weight, None)?,
            Unembedding::Stored(weight) => kernels::linear(hidden, weight, WeightLayout::OutIn, None)?,
        })
    }
}

/// A decoder with a scalar head: reward and value models.
#[derive(Clone, Debug)]
pub struct ScalarModel {
    decoder: Decoder,
    weight: Tensor, // (1, C)
    bias: Tensor,   // (1,)
}

impl ScalarModel {
    /// Over weights in training, or any others.
    pub fn new(config: &Arc<ModelConfig>, weights: &Weights) -> Result<Self> {
        Self::on(Decoder::new(config, weights)?, weights)
    }

    /// Over these weights themselves, of which it makes no copy, recording no gradient: for passes of many tokens.
    pub fn frozen(config: &Arc<ModelConfig>, weights: &Weights) -> Result<Self> {
        Self::new(config, &weights.detached())
    }

    fn on(decoder: Decoder, weights: &Weights) -> Result<Self> {
        let (weight, bias) = (weights.get(SCORE_WEIGHT)?.clone(), weights.get(SCORE_BIAS)?.clone());
        Ok(Self { decoder, weight, bias })
    }

    /// See [`Decoder::with_checkpointing`].
    pub fn with_checkpointing(mut self, gradients: &BlockGradients) -> Self {
        self.decoder = self.decoder.with_checkpointing(gradients);
        self
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// What the head reads at each of these packed rows: the last hidden state, `(R, C)`.
    pub fn hidden_at(&self, packed: &PackedSequences, rows: &[u32]) -> Result<Tensor> {
        self.decoder.forward_packed_at(packed, rows)
    }

    /// The scalar at each of these packed rows: `(R,)`.
    pub fn scalars_at(&self, packed: &PackedSequences, rows: &[u32]) -> Result<Tensor> {
        self.scalars_of(&self.hidden_at(packed, rows)?)
    }

    /// The scalars `(R,)` of hidden states `(R, C)`.
    pub fn scalars_of(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(kernels::linear(hidden, &self.weight, WeightLayout::OutIn, Some(&self.bias))?.squeeze(1)?)
    }
}
