//! Access to the numbers of a tensor on the CPU, for edits in place.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, bail};

/// How many elements one task works on. It is a constant so that no sum's order depends on the number of threads;
/// 64 KiB of f32 keep a task's operands in the second-level cache.
pub(super) const CHUNK: usize = 16 * 1024;

struct OnSlices<F>(RefCell<F>);

impl<F: FnMut(&mut [f32], &[f32])> InplaceOp2 for OnSlices<F> {
    fn name(&self) -> &'static str {
        "edit-in-place"
    }

    fn cpu_fwd(
        &self,
        target: &mut CpuStorage,
        target_layout: &Layout,
        source: &CpuStorage,
        source_layout: &Layout,
    ) -> Result<()> {
        let (Some((from, to)), Some((source_from, source_to))) =
            (target_layout.contiguous_offsets(), source_layout.contiguous_offsets())
        else {
            bail!("an edit in place needs contiguous tensors");
        };
        match (target, source) {
            (CpuStorage::F32(target), CpuStorage::F32(source)) => {
                (self.0.borrow_mut())(&mut target[from..to], &source[source_from..source_to]);
                Ok(())
            }
            _ => bail!("an edit in place needs f32 tensors"),
        }
    }
}

/// Calls `edit` once with the numbers of `target`, to be changed, and those of `source`. Both are f32 tensors of one
/// shape on the CPU, and share no storage.
pub(super) fn edit(target: &Tensor, source: &Tensor, edit: impl FnMut(&mut [f32], &[f32])) -> Result<()> {
    if target.shape() != source.shape() {
        bail!("an edit in place of shape {:?} from shape {:?}", target.shape(), source.shape());
    }
    target.inplace_op2(&source.contiguous()?, &OnSlices(RefCell::new(edit)))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn an_edit_reaches_the_tensor_and_its_views_but_not_its_copies() -> Result<()> {
        let target = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?;
        let (view, copy) = (target.t()?, target.copy()?);
        let source = Tensor::new(&[[10f32, 20.], [30., 40.]], &Device::Cpu)?.t()?; // not contiguous
        edit(&target, &source, |target, source| target.iter_mut().zip(source).for_each(|(t, s)| *t += s))?;
        assert_eq!(target.to_vec2::<f32>()?, [[11., 32.], [23., 44.]]);
        assert_eq!(view.to_vec2::<f32>()?, [[11., 23.], [32., 44.]]);
        assert_eq!(copy.to_vec2::<f32>()?, [[1., 2.], [3., 4.]]);
        Ok(())
    }

    #[test]
    fn another_shape_is_an_error() -> Result<()> {
        let (a, b) = (Tensor::new(&[1f32, 2.], &Device::Cpu)?, Tensor::new(&[1f32], &Device::Cpu)?);
        assert!(edit(&a, &b, |_, _| ()).is_err());
        Ok(())
    }
}
