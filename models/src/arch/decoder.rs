//! The decoder: embeddings, blocks, final norm. Rows in, rows out; attention comes from outside, so that training,
//! scoring and generation run the same code.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::config::{Family, Mlp, ModelConfig, Positions};
use super::packed::PackedSequences;
use super::weights::Weights;
use crate::error::Result;
use crate::kernels::{self, HeadShape, RopeTable, WeightLayout};

/// Where a block's queries find their keys and values.
pub trait Attend {
    /// Attention of one layer: `qkv (N, (H + 2 KV) D)`, already rotated, to `(N, H D)`.
    fn attend(&mut self, layer_idx: usize, qkv: &Tensor, heads: HeadShape) -> candle_core::Result<Tensor>;
}

/// Causal self-attention within each packed sequence.
#[derive(Clone, Copy, Debug)]
pub struct PackedAttention<'a> {
    /// [`PackedSequences::offsets`].
    pub offsets: &'a [usize],
}

impl Attend for PackedAttention<'_> {
    fn attend(&mut self, _layer_idx: usize, qkv: &Tensor, heads: HeadShape) -> candle_core::Result<Tensor> {
        kernels::causal_attention(qkv, self.offsets, heads)
    }
}

#[derive(Clone, Debug)]
struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    layout: WeightLayout,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        kernels::linear(x, &self.weight, self.layout, self.bias.as_ref())
    }

    /// The same layer with its weight as `(in, out)`, which small batches read fastest.
    fn packed(&self) -> candle_core::Result<Self> {
        let weight = match self.layout {
            WeightLayout::InOut => self.weight.clone(),
            WeightLayout::OutIn => self.weight.t()?.contiguous()?,
        };
        Ok(Self { weight, bias: self.bias.clone(), layout: WeightLayout::InOut })
    }
}

#[derive(Clone, Debug)]
enum Qkv {
    Joined(Linear),
    /// Three `(out, in)` matrices, joined in every forward pass so that each receives its gradient.
    Split([Tensor; 3]),
}

impl Qkv {
    fn joined(&self) -> candle_core::Result<Linear> {
        match self {
            Qkv::Joined(linear) => Ok(linear.clone()),
            Qkv::Split(parts) => Ok(Linear { weight: Tensor::cat(parts, 0)?, bias: None, layout: WeightLayout::OutIn }),
        }
    }
}

#[derive(Clone, Debug)]
struct NormLayer {
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f64,
}

impl NormLayer {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match &self.bias {
            Some(bias) => kernels::layer_norm(x, &self.weight, bias, self.eps),
            None => kernels::rms_norm(x, &self.weight, self.eps),
        }
    }
}

#[derive(Clone, Debug)]
enum MlpLayer {
    Gelu { up: Linear, down: Linear, kind: kernels::Gelu },
    SwiGlu { gate: Linear, up: Linear, down: Linear },
}

impl MlpLayer {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            MlpLayer::Gelu { up, down, kind } => down.forward(&kernels::gelu(&up.forward(x)?, *kind)?),
            MlpLayer::SwiGlu { gate, up, down } => {
                down.forward(&kernels::silu_mul(&gate.forward(x)?, &up.forward(x)?)?)
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Block {
    attention_norm: NormLayer,
    qkv: Qkv,
    attention_out: Linear,
    mlp_norm: NormLayer,
    mlp: MlpLayer,
}

/// Token ids to hidden states. It holds views of its weights: built on [`Parameters`](super::Parameters) it follows
/// their training, built on a snapshot it never changes.
#[derive(Clone, Debug)]
pub struct Decoder {
    config: Arc<ModelConfig>,
    embedding: Tensor,                  // (V, C)
    position_embedding: Option<Tensor>, // (context_len, C)
    rope: Option<Arc<RopeTable>>,
    blocks: Vec<Block>,
    final_norm: NormLayer,
}

impl Decoder {
    /// A decoder over these weights. Errors name the first tensor that is missing.
    pub fn new(config: &Arc<ModelConfig>, weights: &Weights) -> Result<Self> {
        let blocks = (0..config.n_layers).map(|i| load_block(config, weights, i)).collect::<Result<_>>()?;
        let (embedding, position_embedding, final_norm) = match config.family {
            Family::Gpt2 => ("transformer.wte.weight", Some("transformer.wpe.weight"), "transformer.ln_f"),
            Family::Llama => ("model.embed_tokens.weight", None, "model.norm"),
        };
        let rope = match config.positions {
            Positions::Learned => None,
            Positions::Rotary { theta } => {
                Some(Arc::new(RopeTable::new(config.heads.head_dim, config.context_len, theta)))
            }
        };
        Ok(Self {
            config: config.clone(),
            embedding: weights.get(embedding)?.clone(),
            position_embedding: position_embedding.map(|name| weights.get(name).cloned()).transpose()?,
            rope,
            blocks,
            final_norm: load_norm(config, weights, final_norm)?,
        })
    }

    /// A decoder for inference over weights that no longer change: joins and transposes them once.
    pub fn frozen(config: &Arc<ModelConfig>, weights: &Weights) -> Result<Self> {
        let mut decoder = Self::new(config, weights)?;
        for block in &mut decoder.blocks {
            block.qkv = Qkv::Joined(block.qkv.joined()?.packed()?);
            block.attention_out = block.attention_out.packed()?;
            block.mlp = match &block.mlp {
                MlpLayer::Gelu { up, down, kind } => {
                    MlpLayer::Gelu { up: up.packed()?, down: down.packed()?, kind: *kind }
                }
                MlpLayer::SwiGlu { gate, up, down } => {
                    MlpLayer::SwiGlu { gate: gate.packed()?, up: up.packed()?, down: down.packed()? }
                }
            };
        }
        Ok(decoder)
    }

    /// The config it was built for.
    pub fn config(&self) -> &Arc<ModelConfig> {
        &self.config
    }

    /// Where its weights lie.
    pub fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// The embedding `(V, C)`: the unembedding too, when tied.
    pub fn embedding(&self) -> &Tensor {
        &self.embedding
    }

    /// Hidden states `(N, C)` after the final norm, for N tokens at their positions.
    pub fn forward(&self, ids: &[u32], positions: &[u32], attend: &mut dyn Attend) -> Result<Tensor> {
        let device = self.device();
        let n = ids.len();
        let mut x = self.embedding.index_select(&Tensor::from_slice(ids, n, device)?, 0)?; // (N, C)
        if let Some(position_embedding) = &self.position_embedding {
            let rows = Tensor::from_slice(positions, n, device)?;
            x = (x + position_embedding.index_select(&rows, 0)?)?;
        }
        for (layer_idx, block) in self.blocks.iter().enumerate() {
            let mut qkv = block.qkv.joined()?.forward(&block.attention_norm.forward(&x)?)?; // (N, (H + 2 KV) D)
            if let Some(table) = &self.rope {
                qkv = kernels::rope(&qkv, positions, table, self.config.heads)?;
            }
            let attended = attend.attend(layer_idx, &qkv, self.config.heads)?; // (N, H D)
            x = (x + block.attention_out.forward(&attended)?)?;
            x = (&x + block.mlp.forward(&block.mlp_norm.forward(&x)?)?)?;
        }
        Ok(self.final_norm.forward(&x)?)
    }

    /// Hidden states `(N, C)` of packed sequences, each attending to itself alone.
    pub fn forward_packed(&self, packed: &PackedSequences) -> Result<Tensor> {
        self.forward(&packed.ids, &packed.positions, &mut PackedAttention { offsets: &packed.offsets })
    }
}

fn load_norm(config: &ModelConfig, weights: &Weights, name: &str) -> Result<NormLayer> {
    let bias = match config.norm {
        super::Norm::Layer => Some(weights.get(&format!("{name}.bias"))?.clone()),
        super::Norm::Rms => None,
    };
    Ok(NormLayer { weight: weights.get(&format!("{name}.weight"))?.clone(), bias, eps: config.norm_eps })
}

fn load_block(config: &ModelConfig, weights: &Weights, i: usize) -> Result<Block> {
    let linear = |name: String, layout, with_bias: bool| -> Result<Linear> {
        let bias = if with_bias { Some(weights.get(&format!("{name}.bias"))?.clone()) } else { None };
        Ok(Linear { weight: weights.get(&format!("{name}.weight"))?.clone(), bias, layout })
    };
    match config.family {
        Family::Gpt2 => {
            let p = format!("transformer.h.{i}");
            let conv1d = |name: &str| linear(format!("{p}.{name}"), WeightLayout::InOut, true);
            let Mlp::Gelu(kind) = config.mlp else { unreachable!("GPT-2 has a GELU MLP") };
            Ok(Block {
                attention_norm: load_norm(config, weights, &format!("{p}.ln_1"))?,
                qkv: Qkv::Joined(conv1d("attn.c_attn")?),
                attention_out: conv1d("attn.c_proj")?,
                mlp_norm: load_norm(config, weights, &format!("{p}.ln_2"))?,
                mlp: MlpLayer::Gelu { up: conv1d("mlp.c_fc")?, down: conv1d("mlp.c_proj")?, kind },
            })
        }
        Family::Llama => {
            let p = format!("model.layers.{i}");
            let plain = |name: &str| linear(format!("{p}.{name}"), WeightLayout::OutIn, false);
            let weight = |name: &str| weights.get(&format!("{p}.self_attn.{name}.weight")).cloned();
            Ok(Block {
                attention_norm: load_norm(config, weights, &format!("{p}.input_layernorm"))?,
                qkv: Qkv::Split([weight("q_proj")?, weight("k_proj")?, weight("v_proj")?]),
                attention_out: plain("self_attn.o_proj")?,
                mlp_norm: load_norm(config, weights, &format!("{p}.post_attention_layernorm"))?,
                mlp: MlpLayer::SwiGlu {
                    gate: plain("mlp.gate_proj")?,
                    up: plain("mlp.up_proj")?,
                    down: plain("mlp.down_proj")?,
                },
            })
        }
    }
}
