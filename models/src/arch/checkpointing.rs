//! Gradient checkpointing (Chen et al. 2016): of each block only its argument is kept, and the block is computed once
//! more in the backward pass.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, Var, bail};

use super::block::Block;
use crate::kernels::{self, RopeTable};

/// Gradients of the blocks' parameters. candle's backward pass, to which a block that is computed twice is one op of one
/// argument, does not see them; they gather here while it runs.
#[derive(Clone, Debug, Default)]
pub struct BlockGradients(Arc<Mutex<Vec<GradStore>>>);

impl BlockGradients {
    /// What has gathered since the last call: one store a block, each with parameters that no other has.
    pub fn take(&self) -> Vec<GradStore> {
        mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, store: GradStore) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(store);
    }
}

/// A block over packed sequences.
pub(super) struct Checkpointed {
    pub block: Block,
    pub rope: Option<Arc<RopeTable>>,
    /// Those that are asked for, where they are not all.
    pub rows: Option<Arc<[u32]>>,
    pub offsets: Arc<[usize]>,
    pub gradients: BlockGradients,
}

impl Checkpointed {
    /// The residual stream `x (N, C)` after the block, or its rows: the same bits as without checkpointing, and so are the gradients.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        if !x.device().is_cpu() {
            bail!("gradient checkpointing is implemented on the CPU alone, not on {:?}", x.device().location());
        }
        // Where nothing before the block is trained, candle would not ask the block for its gradients.
        let x = if x.track_op() { x.clone() } else { Var::from_tensor(x)?.as_tensor().clone() };
        x.contiguous()?.apply_op1(self)
    }

    fn block(&self, x: &Tensor) -> Result<Tensor> {
        let attend = |qkv: &Tensor, rule| kernels::causal_attention(qkv, &self.offsets, rule);
        self.block.forward(x, self.rope.as_deref(), self.rows.as_deref(), attend)
    }
}

impl CustomOp1 for Checkpointed {
    fn name(&self) -> &'static str {
        "checkpointed block"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("a checkpointed block was given a strided tensor");
        };
        let x = Tensor::from_slice(&storage.as_slice::<f32>()?[from..to], layout.shape(), &candle_core::Device::Cpu)?;
        let y = self.block(&x)?;
        Ok((CpuStorage::F32(y.flatten_all()?.to_vec1()?), y.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let x = Var::from_tensor(&x.detach())?;
        // The gradient of Σ grad · y by y is grad, to the bit.
        let y = kernels::recorded(|| self.block(x.as_tensor()))?;
        let weighted = (y * grad)?.sum_all()?;
        let mut store = weighted.backward()?;
        let grad_x = store.remove(&x);
        // candle has left one for `grad` too, which would keep all of the block's record.
        store.remove(grad);
        self.gradients.push(store);
        Ok(grad_x)
    }
}
