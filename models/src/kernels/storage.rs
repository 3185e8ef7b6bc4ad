//! From candle's tensors to slices and back.

use std::ops::Deref;

use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, Var, bail};

use super::blocks::for_each_block;
use super::buffer::{Disjoint, filled_by};

/// Numbers that one task of [`copied`] copies.
const COPY_BLOCK: usize = 1 << 16;

/// Whether a fused op can run on these tensors.
pub fn fusable(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| runs_fused(t.device(), t.dtype()))
}

/// Whether fused ops take tensors of this type there: in f32 on the CPU.
pub fn runs_fused(device: &Device, dtype: DType) -> bool {
    matches!(device, Device::Cpu) && dtype == DType::F32
}

/// An argument of a fused op; ops make their arguments contiguous before they are applied.
pub fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a fused op was given a strided tensor"),
    }
}

/// The numbers of a contiguous f32 tensor on the CPU.
pub fn numbers(tensor: &Tensor) -> Result<impl Deref<Target = [f32]> + '_> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(cpu) = &*storage else {
        bail!("a fused op was given a tensor on {:?}", tensor.device().location())
    };
    slice(cpu, layout)?;
    let start = layout.start_offset();
    Ok(Numbers { storage, range: start..start + tensor.elem_count() })
}

/// A variable with a tensor's numbers, copied by all threads: memory that is new to the process costs a page fault for every
/// 4 KiB of it.
pub fn copied(tensor: &Tensor) -> Result<Var> {
    if !fusable(&[tensor]) || !tensor.is_contiguous() {
        return Var::from_tensor(&tensor.detach());
    }
    let numbers = numbers(tensor)?;
    let fill = |copy: &Disjoint<'_>| {
        for_each_block(numbers.len(), COPY_BLOCK, numbers.len(), |block| {
            // SAFETY: each block is one task's.
            unsafe { copy.places(block.start, block.len()) }.write_copy_of_slice(&numbers[block.clone()]);
        });
    };
    // SAFETY: the blocks cover all of it.
    Var::from_vec(unsafe { filled_by(numbers.len(), fill) }, tensor.shape(), &Device::Cpu)
}

struct Numbers<G> {
    storage: G,
    range: std::ops::Range<usize>,
}

impl<G: Deref<Target = Storage>> Deref for Numbers<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(numbers)) => &numbers[self.range.clone()],
            _ => unreachable!("`numbers` has checked the storage"),
        }
    }
}

/// A new tensor's storage, as ops return it.
pub fn output(numbers: Vec<f32>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(numbers), shape.into()))
}

/// A new tensor on the CPU.
pub fn tensor(numbers: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(numbers, shape.into(), &Device::Cpu)
}
