//! Rows of a table.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::storage::{fusable, numbers, output, slice};
use super::tape::apply1;
use super::weight_gradients::table_gradient;

/// The rows `ids` of `table (V, C)`: `(N, C)`.
pub fn embed(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let (n_rows, _) = table.dims2()?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= n_rows) {
        bail!("embedding: row {id} is outside a table of {n_rows}");
    }
    if !fusable(&[table]) {
        return table.index_select(&Tensor::from_slice(ids, ids.len(), table.device())?, 0);
    }
    apply1(&table.contiguous()?, Embed { ids: ids.to_vec() })
}

struct Embed {
    ids: Vec<u32>,
}

impl CustomOp1 for Embed {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, c) = layout.shape().dims2()?;
        let table = slice(table, layout)?;
        let mut rows = Vec::with_capacity(self.ids.len() * c);
        self.ids.iter().for_each(|&id| rows.extend_from_slice(&table[id as usize * c..][..c]));
        output(rows, (self.ids.len(), c))
    }

    fn bwd(&self, table: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        table_gradient(table, &self.ids, &numbers(&grad.contiguous()?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_function, random};

    #[test]
    fn agrees_with_candle_in_value_and_gradient() {
        for ids in [vec![2, 0, 2, 4, 2], vec![0], vec![]] {
            let indices = Tensor::new(ids.as_slice(), &candle_core::Device::Cpu).unwrap();
            assert_same_function(&[random((5, 7), 1)], |t| embed(&t[0], &ids), |t| t[0].index_select(&indices, 0));
        }
    }

    #[test]
    fn a_row_outside_the_table_is_refused() {
        let error = embed(&random((5, 7), 1), &[4, 5]).unwrap_err().to_string();
        assert!(error.contains("row 5 is outside a table of 5"), "{error}");
    }
}
