//! Products of matrices that lie in memory in any order: a safe face of the `gemm` crate, for gradients.
//!
//! A row's bits may depend on how many rows there are.

use gemm::Parallelism;

/// A matrix seen in a slice.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    numbers: &'a [f32],
    n_rows: usize,
    n_columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row by row, `stride` from one row's start to the next one's.
    pub fn strided(numbers: &'a [f32], n_rows: usize, n_columns: usize, stride: usize) -> Self {
        assert!(n_rows == 0 || n_columns == 0 || (n_rows - 1) * stride + n_columns <= numbers.len());
        Self { numbers, n_rows, n_columns, row_stride: stride, column_stride: 1 }
    }

    /// Its transpose, without moving a number.
    pub fn t(self) -> Self {
        Self {
            n_rows: self.n_columns,
            n_columns: self.n_rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// `y (m, n) += a (m, k) · b (k, n)`, `y` row by row without gaps; on this thread alone.
pub fn add_product(y: &mut [f32], a: Matrix<'_>, b: Matrix<'_>) {
    let (m, n, k) = (a.n_rows, b.n_columns, a.n_columns);
    assert_eq!(k, b.n_rows);
    assert_eq!(y.len(), m * n);
    // SAFETY: both matrices lie within their slices (asserted where they are made); y is as long as the product,
    // written, and borrowed alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            n as isize,
            true,
            a.numbers.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.numbers.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_transposes_and_of_parts_are_added() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut y = vec![0.0; 4];
        // [[1 2 3] [4 5 6]] by its transpose.
        let whole = Matrix::strided(&a, 2, 3, 3);
        add_product(&mut y, whole, whole.t());
        assert_eq!(y, [14.0, 32.0, 32.0, 77.0]);
        // Its first two columns: [[1 2] [4 5]] squared.
        let part = Matrix::strided(&a, 2, 2, 3);
        add_product(&mut y, part, part);
        assert_eq!(y, [14.0 + 9.0, 32.0 + 12.0, 32.0 + 24.0, 77.0 + 33.0]);
    }

    #[test]
    #[should_panic]
    fn a_matrix_that_is_larger_than_its_slice_panics() {
        Matrix::strided(&[0.0; 5], 2, 3, 3);
    }
}
