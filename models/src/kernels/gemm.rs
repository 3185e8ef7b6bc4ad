//! The general matrix product, for gradients: a safe face of the `gemm` crate.
//!
//! Results are the same bits for any number of threads, but a row's bits may depend on how many rows there are.

use gemm::Parallelism;

use super::product::PARALLEL_WORK;

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

    /// Row by row, without gaps.
    pub fn new(numbers: &'a [f32], n_rows: usize, n_columns: usize) -> Self {
        Self::strided(numbers, n_rows, n_columns, n_columns)
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

/// Whether a product may use the threads of the current rayon pool.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// It may.
    All,
    /// It runs inside a task already.
    One,
}

impl Threads {
    /// All of them where that many multiply-adds are worth it.
    pub fn for_work(n_multiply_adds: usize) -> Self {
        if n_multiply_adds < PARALLEL_WORK { Self::One } else { Self::All }
    }
}

/// What becomes of what stands in the result's place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Into {
    /// It is overwritten.
    Replace,
    /// The product is added to it.
    Add,
}

/// `y (m, n) = [y +] scale · a (m, k) · b (k, n)`, `y` row by row without gaps.
pub fn multiply(y: &mut [f32], into: Into, a: Matrix<'_>, b: Matrix<'_>, scale: f32, threads: Threads) {
    let (m, n, k) = (a.n_rows, b.n_columns, a.n_columns);
    assert_eq!(k, b.n_rows);
    assert_eq!(y.len(), m * n);
    let parallelism = match (threads, rayon::current_num_threads()) {
        (Threads::One, _) | (_, 1) => Parallelism::None,
        (Threads::All, n_threads) => Parallelism::Rayon(n_threads),
    };
    let read = into == Into::Add;
    // SAFETY: both matrices lie within their slices (asserted where they are made), y is as long as the product,
    // borrowed alone, and with `read` off it is only written.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            n as isize,
            read,
            a.numbers.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.numbers.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            if read { 1.0 } else { 0.0 },
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_transposes_and_of_parts() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut y = vec![0.0; 4];
        // [[1 2 3] [4 5 6]] by its transpose.
        let whole = Matrix::new(&a, 2, 3);
        multiply(&mut y, Into::Replace, whole, whole.t(), 1.0, Threads::One);
        assert_eq!(y, [14.0, 32.0, 32.0, 77.0]);
        // Its first two columns: [[1 2] [4 5]] squared, halved, added.
        let part = Matrix::strided(&a, 2, 2, 3);
        multiply(&mut y, Into::Add, part, part, 0.5, Threads::All);
        assert_eq!(y, [14.0 + 4.5, 32.0 + 6.0, 32.0 + 12.0, 77.0 + 16.5]);
    }

    #[test]
    #[should_panic]
    fn a_matrix_that_is_larger_than_its_slice_panics() {
        Matrix::strided(&[0.0; 5], 2, 3, 3);
    }
}
