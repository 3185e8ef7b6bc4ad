//! A decoder's block, piece by piece.

use candle_core::Tensor;

use super::config::{Attention, Mlp, ModelConfig, Norm, Residual};
use super::families::QkvNames;
use super::lora::LoraTensors;
use super::precision::Precision;
use super::weights::Weights;
use crate::error::Result;
use crate::kernels::{self, AttentionRule, FrozenLinear, Gelu, PackedWeight, RopeTable, WeightLayout, add};

/// A linear layer.
#[derive(Clone, Debug)]
enum Linear {
    Stored(StoredLinear),
    Packed(PackedLinear),
}

impl Linear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Linear::Stored(linear) => linear.forward(x),
            Linear::Packed(linear) => linear.forward(x),
        }
    }

    fn pack(&mut self) -> candle_core::Result<()> {
        if let Linear::Stored(linear) = self {
            *self = Linear::Packed(linear.packed()?);
        }
        Ok(())
    }
}

/// A layer whose weight no longer changes, laid out for inference.
#[derive(Clone, Debug)]
struct PackedLinear {
    weight: PackedWeight,
    bias: Option<Tensor>,
}

impl PackedLinear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        kernels::packed_linear(x, &self.weight, self.bias.as_ref())
    }
}

/// A layer with its weight as it is stored, perhaps in training, perhaps with an adapter.
#[derive(Clone, Debug)]
struct StoredLinear {
    weight: Tensor,
    bias: Option<Tensor>,
    layout: WeightLayout,
    adapter: Option<LoraTensors>,
    precision: Precision,
}

impl StoredLinear {
    fn load(weights: &Weights, name: &str, layout: WeightLayout, has_bias: bool) -> Result<Self> {
        let bias = if has_bias { Some(weights.get(&format!("{name}.bias"))?.clone()) } else { None };
        let (weight, adapter) = (weights.get(&format!("{name}.weight"))?, weights.adapter(name)?);
        // A base has its matrices transposed in memory.
        let (weight, layout) = match weights.has_base() && !weight.is_contiguous() {
            true => (weight.t()?, layout.flipped()),
            false => (weight.clone(), layout),
        };
        Ok(Self { weight, bias, layout, adapter, precision: weights.precision() })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (weight, layout, bias) = (&self.precision.matrix(&self.weight)?, self.layout, self.bias.as_ref());
        match &self.adapter {
            None => kernels::linear(x, weight, layout, bias),
            Some(LoraTensors { a, b, scale }) => {
                kernels::lora_linear(x, FrozenLinear { weight, layout, bias }, a, b, *scale)
            }
        }
    }

    /// The same layer, which has no adapter.
    fn packed(&self) -> candle_core::Result<PackedLinear> {
        let bias = self.bias.as_ref().map(Tensor::detach);
        Ok(PackedLinear { weight: PackedWeight::new(&self.precision.matrix(&self.weight)?, self.layout)?, bias })
    }
}

/// The projections to queries, keys and values as they are stored, so that each stored tensor receives its gradient.
#[derive(Clone, Debug)]
enum Qkv {
    Joined(StoredLinear),
    /// For each head its query, key and value. In training the weight's rows are put in order in every forward pass; on a
    /// base that is shared, the results.
    Interleaved(StoredLinear),
    Split([StoredLinear; 3]),
    /// Joined, and laid out for inference.
    Packed(PackedLinear),
}

impl Qkv {
    fn pack(&mut self, rule: AttentionRule) -> candle_core::Result<()> {
        let packed = match self {
            Qkv::Packed(_) => return Ok(()),
            Qkv::Joined(linear) => linear.packed()?,
            Qkv::Interleaved(linear) => Self::regrouped(linear, rule)?.packed()?,
            Qkv::Split(parts) => Self::concatenated(parts)?.packed()?,
        };
        *self = Qkv::Packed(packed);
        Ok(())
    }

    /// Queries, keys and values of `x (N, C)`: `(N, (H + 2 KV) D)`. Of a weight that `is_shared` no copy is made.
    fn forward(&self, x: &Tensor, rule: AttentionRule, is_shared: bool) -> candle_core::Result<Tensor> {
        match self {
            Qkv::Packed(linear) => linear.forward(x),
            Qkv::Joined(linear) => linear.forward(x),
            Qkv::Interleaved(linear) if is_shared => {
                let (n_heads, head_dim) = (rule.heads.n_heads, rule.heads.head_dim);
                let by_head = linear.forward(x)?.reshape(((), n_heads, 3, head_dim))?;
                by_head.transpose(1, 2)?.contiguous()?.reshape(((), 3 * n_heads * head_dim))
            }
            Qkv::Interleaved(linear) => Self::regrouped(linear, rule)?.forward(x),
            Qkv::Split([q, k, v]) => kernels::join_columns([&q.forward(x)?, &k.forward(x)?, &v.forward(x)?]),
        }
    }

    /// Rows by head to all queries, all keys, all values.
    fn regrouped(linear: &StoredLinear, rule: AttentionRule) -> candle_core::Result<StoredLinear> {
        let (n_heads, head_dim) = (rule.heads.n_heads, rule.heads.head_dim);
        // (H, 3, D) rows to (3, H, D).
        let regrouped = |tensor: &Tensor, columns: &[usize]| -> candle_core::Result<Tensor> {
            let shape = [&[n_heads, 3, head_dim], columns].concat();
            let joined = [&[3 * n_heads * head_dim], columns].concat();
            tensor.reshape(shape)?.transpose(0, 1)?.contiguous()?.reshape(joined)
        };
        Ok(StoredLinear {
            weight: regrouped(&linear.weight, &[linear.weight.dim(1)?])?,
            bias: linear.bias.as_ref().map(|bias| regrouped(bias, &[])).transpose()?,
            layout: linear.layout,
            adapter: None,
            precision: linear.precision,
        })
    }

    fn concatenated(parts: &[StoredLinear; 3]) -> candle_core::Result<StoredLinear> {
        let weights: Vec<&Tensor> = parts.iter().map(|part| &part.weight).collect();
        let biases: Vec<&Tensor> = parts.iter().filter_map(|part| part.bias.as_ref()).collect();
        let bias = if biases.is_empty() { None } else { Some(Tensor::cat(&biases, 0)?) };
        let [StoredLinear { layout, precision, .. }, ..] = *parts;
        Ok(StoredLinear { weight: Tensor::cat(&weights, 0)?, bias, layout, adapter: None, precision })
    }
}

/// A norm of rows.
#[derive(Clone, Debug)]
pub(super) struct NormLayer {
    weight: Tensor,
    bias: Option<Tensor>,
    plus_one: bool,
    eps: f64,
}

impl NormLayer {
    /// The norm of this name.
    pub(super) fn load(config: &ModelConfig, weights: &Weights, name: &str) -> Result<Self> {
        let bias = match config.norm {
            Norm::Layer => Some(weights.get(&format!("{name}.bias"))?.clone()),
            Norm::Rms | Norm::RmsPlusOne => None,
        };
        let weight = weights.get(&format!("{name}.weight"))?.clone();
        Ok(Self { weight, bias, plus_one: config.norm == Norm::RmsPlusOne, eps: config.norm_eps })
    }

    /// Each row of `x (N, C)`, normalised.
    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match &self.bias {
            Some(bias) => kernels::layer_norm(x, &self.weight, bias, self.eps),
            None if self.plus_one => kernels::rms_norm(x, &(&self.weight + 1.0)?, self.eps),
            None => kernels::rms_norm(x, &self.weight, self.eps),
        }
    }
}

#[derive(Clone, Debug)]
enum MlpLayer {
    Gelu { up: Linear, down: Linear, kind: Gelu },
    SwiGlu { gate: Linear, up: Linear, down: Linear },
    GeGlu { gate: Linear, up: Linear, down: Linear, kind: Gelu },
}

impl MlpLayer {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            MlpLayer::Gelu { up, down, kind } => down.forward(&kernels::gelu(&up.forward(x)?, *kind)?),
            MlpLayer::SwiGlu { gate, up, down } => {
                down.forward(&kernels::silu_mul(&gate.forward(x)?, &up.forward(x)?)?)
            }
            MlpLayer::GeGlu { gate, up, down, kind } => {
                down.forward(&kernels::multiply(&kernels::gelu(&gate.forward(x)?, *kind)?, &up.forward(x)?)?)
            }
        }
    }

    fn pack(&mut self) -> candle_core::Result<()> {
        match self {
            MlpLayer::Gelu { up, down, .. } => [up, down].into_iter().try_for_each(Linear::pack),
            MlpLayer::SwiGlu { gate, up, down } | MlpLayer::GeGlu { gate, up, down, .. } => {
                [gate, up, down].into_iter().try_for_each(Linear::pack)
            }
        }
    }
}

/// Attention and MLP of one layer.
#[derive(Clone, Debug)]
pub(super) struct Block {
    residual: Residual,
    rule: AttentionRule,
    attention_norm: NormLayer,
    qkv: Qkv,
    /// Whether the weights are a base's, which no copy is made of.
    is_shared: bool,
    /// Of queries and keys.
    qk_norm: Option<[NormLayer; 2]>,
    attention_out: Linear,
    mlp_norm: NormLayer,
    mlp: MlpLayer,
    /// After attention and after the MLP.
    branch_norms: Option<[NormLayer; 2]>,
}

impl Block {
    /// The block of this layer.
    pub(super) fn load(config: &ModelConfig, weights: &Weights, layer_idx: usize) -> Result<Self> {
        let (names, attention) = (config.family.names(), &config.attention);
        let at = |part: &str| names.in_block(layer_idx, part);
        let stored = |part: &str, has_bias| StoredLinear::load(weights, &at(part), names.layout, has_bias);
        let linear = |part: &str, has_bias| stored(part, has_bias).map(Linear::Stored);
        let norm = |part: &str| NormLayer::load(config, weights, &at(part));
        let norms = |[a, b]: [&str; 2]| -> Result<[NormLayer; 2]> { Ok([norm(a)?, norm(b)?]) };
        let (up, down) = (linear(names.mlp_up, config.mlp_bias)?, linear(names.mlp_down, config.mlp_bias)?);
        let gate = || linear(names.mlp_gate, config.mlp_bias);
        Ok(Self {
            residual: config.residual,
            rule: attention.rule(layer_idx),
            attention_norm: norm(names.attention_norm)?,
            qkv: load_qkv(attention, names.qkv, stored)?,
            is_shared: weights.has_base(),
            qk_norm: if attention.qk_norm { Some(norms(names.qk_norm)?) } else { None },
            attention_out: linear(names.attention_out, attention.out_bias)?,
            mlp_norm: norm(names.mlp_norm)?,
            mlp: match config.mlp {
                Mlp::Gelu(kind) => MlpLayer::Gelu { up, down, kind },
                Mlp::SwiGlu => MlpLayer::SwiGlu { gate: gate()?, up, down },
                Mlp::GeGlu(kind) => MlpLayer::GeGlu { gate: gate()?, up, down, kind },
            },
            branch_norms: if config.residual == Residual::Sandwich { Some(norms(names.branch_norms)?) } else { None },
        })
    }

    /// Joins weights that no longer change, and lays them out for inference, unless they are shared.
    pub(super) fn lay_out(&mut self) -> Result<()> {
        if self.is_shared {
            return Ok(());
        }
        self.qkv.pack(self.rule)?;
        self.attention_out.pack()?;
        Ok(self.mlp.pack()?)
    }

    /// The residual stream `x (N, C)` after this block. `attend` is the attention over `qkv (N, (H + 2 KV) D)`. With `rows`,
    /// which are some, it is `(R, C)`: what comes after the attention is computed for these alone.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        rope: Option<&RopeTable>,
        rows: Option<&[u32]>,
        mut attend: impl FnMut(&Tensor, AttentionRule) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let kept = |x: &Tensor| rows.map_or_else(|| Ok(x.clone()), |rows| kernels::embed(x, rows));
        let mut attention = |x: &Tensor| self.attention_out.forward(&kept(&attend(&self.qkv(x, rope)?, self.rule)?)?);
        match self.residual {
            Residual::PreNorm => {
                let x = add(&kept(x)?, &attention(&self.attention_norm.forward(x)?)?)?;
                add(&x, &self.mlp.forward(&self.mlp_norm.forward(&x)?)?)
            }
            Residual::PostNorm => {
                let x = self.attention_norm.forward(&add(&kept(x)?, &attention(x)?)?)?;
                self.mlp_norm.forward(&add(&x, &self.mlp.forward(&x)?)?)
            }
            Residual::Parallel => {
                let attended = attention(&self.attention_norm.forward(x)?)?;
                let x = kept(x)?;
                add(&add(&x, &attended)?, &self.mlp.forward(&self.mlp_norm.forward(&x)?)?)
            }
            Residual::Sandwich => {
                let [after_attention, after_mlp] = self.branch_norms.as_ref().expect("loaded with these norms");
                let attended = attention(&self.attention_norm.forward(x)?)?;
                let x = add(&kept(x)?, &after_attention.forward(&attended)?)?;
                add(&x, &after_mlp.forward(&self.mlp.forward(&self.mlp_norm.forward(&x)?)?)?)
            }
        }
    }

    /// Queries, keys and values `(N, (H + 2 KV) D)`, normalised and rotated as the model has it.
    fn qkv(&self, x: &Tensor, rope: Option<&RopeTable>) -> candle_core::Result<Tensor> {
        let heads = self.rule.heads;
        let mut qkv = self.qkv.forward(x, self.rule, self.is_shared)?;
        if let Some([q_norm, k_norm]) = &self.qk_norm {
            let (n, kv_dim) = (qkv.dim(0)?, heads.n_kv_heads * heads.head_dim);
            let normed = |norm: &NormLayer, start: usize, dim: usize| {
                let part = qkv.narrow(1, start, dim)?.contiguous()?;
                norm.forward(&part.reshape((n * dim / heads.head_dim, heads.head_dim))?)?.reshape((n, dim))
            };
            let q = normed(q_norm, 0, heads.out_dim())?;
            let k = normed(k_norm, heads.out_dim(), kv_dim)?;
            qkv = Tensor::cat(&[q, k, qkv.narrow(1, heads.out_dim() + kv_dim, kv_dim)?], 1)?;
        }
        match rope {
            Some(table) => kernels::rope(&qkv, table, heads),
            None => Ok(qkv),
        }
    }
}

fn load_qkv(
    attention: &Attention,
    names: QkvNames,
    linear: impl Fn(&str, bool) -> Result<StoredLinear>,
) -> Result<Qkv> {
    let has_bias = attention.qkv_bias;
    Ok(match names {
        QkvNames::Joined(name) => Qkv::Joined(linear(name, has_bias)?),
        QkvNames::Interleaved(name) => Qkv::Interleaved(linear(name, has_bias)?),
        QkvNames::Split([q, k, v]) => Qkv::Split([linear(q, has_bias)?, linear(k, has_bias)?, linear(v, has_bias)?]),
    })
}
