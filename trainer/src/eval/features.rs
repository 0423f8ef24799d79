//! A matrix of feature vectors, one row a picture.

use candle_core::{Device, Tensor};
use latentd_model::Embedding;
use rayon::prelude::*;

use super::error::EvalError;

/// Row-major `[rows, dim]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Features {
    dim: usize,
    data: Vec<f32>,
}

impl Features {
    /// Wraps `data`, whose length must be a multiple of `dim`.
    ///
    /// # Errors
    /// When it is not, or `dim` is zero.
    pub fn new(dim: usize, data: Vec<f32>) -> Result<Self, EvalError> {
        if dim == 0 || !data.len().is_multiple_of(dim) {
            return Err(EvalError::Shape(format!("{} numbers do not make rows of {dim}", data.len())));
        }
        Ok(Self { dim, data })
    }

    /// One row for each embedding.
    ///
    /// # Errors
    /// When there is none or their lengths differ.
    pub fn from_embeddings(embeddings: &[Embedding]) -> Result<Self, EvalError> {
        let mut features = Self::default();
        embeddings.iter().try_for_each(|e| features.push(e.as_slice()))?;
        if features.dim == 0 {
            return Err(EvalError::Shape("no embeddings".to_owned()));
        }
        Ok(features)
    }

    /// Appends a row; the first one sets the length of all.
    ///
    /// # Errors
    /// When its length differs.
    pub fn push(&mut self, row: &[f32]) -> Result<(), EvalError> {
        if self.dim == 0 {
            self.dim = row.len();
        }
        if row.len() != self.dim || row.is_empty() {
            return Err(EvalError::Shape(format!(
                "a vector of {} numbers among vectors of {}",
                row.len(),
                self.dim
            )));
        }
        self.data.extend_from_slice(row);
        Ok(())
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.data.len().checked_div(self.dim).unwrap_or(0)
    }

    /// Length of a row.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// All numbers, row by row.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        &self.data
    }

    /// The rows.
    pub fn iter(&self) -> std::slice::ChunksExact<'_, f32> {
        self.data.chunks_exact(self.dim.max(1))
    }

    /// The rows, in parallel.
    pub(super) fn par_iter(&self) -> rayon::slice::ChunksExact<'_, f32> {
        self.data.par_chunks_exact(self.dim.max(1))
    }

    /// The chosen rows, in the order given; indices beyond the end are left out.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        let mut data = Vec::with_capacity(rows.len() * self.dim);
        for row in rows {
            data.extend_from_slice(self.data.get(row * self.dim..(row + 1) * self.dim).unwrap_or_default());
        }
        Self { dim: self.dim, data }
    }

    /// Mean and standard deviation of every column.
    #[must_use]
    pub fn moments(&self) -> (Vec<f64>, Vec<f64>) {
        let dim = self.dim;
        let zero = || (vec![0.0f64; dim], vec![0.0f64; dim]);
        // Fixed pieces summed in order: the result does not depend on the threads.
        let pieces: Vec<_> = self
            .data
            .par_chunks(dim.max(1) * 1024)
            .map(|piece| {
                let (mut sums, mut squares) = zero();
                for row in piece.chunks_exact(dim) {
                    for ((s, q), &v) in sums.iter_mut().zip(&mut squares).zip(row) {
                        *s += f64::from(v);
                        *q += f64::from(v) * f64::from(v);
                    }
                }
                (sums, squares)
            })
            .collect();
        let (mut mean, mut std) = zero();
        let n = self.rows().max(1) as f64;
        for (sums, squares) in pieces {
            for i in 0..dim {
                mean[i] += sums[i] / n;
                std[i] += squares[i] / n;
            }
        }
        for (s, m) in std.iter_mut().zip(&mean) {
            *s = (*s - m * m).max(0.0).sqrt();
        }
        (mean, std)
    }

    /// Subtracts `mean` from every row and divides by `std`; a column that never varies becomes zero.
    pub fn standardise(&mut self, mean: &[f64], std: &[f64]) {
        let scale: Vec<f32> = std.iter().map(|&s| if s > 1e-8 { (1.0 / s) as f32 } else { 0.0 }).collect();
        let mean: Vec<f32> = mean.iter().map(|&m| m as f32).collect();
        self.data.par_chunks_exact_mut(self.dim.max(1)).for_each(|row| {
            for ((v, m), s) in row.iter_mut().zip(&mean).zip(&scale) {
                *v = (*v - m) * s;
            }
        });
    }

    /// The matrix as a tensor; gives the memory away instead of copying it.
    pub(super) fn into_tensor(self) -> Result<Tensor, EvalError> {
        let shape = (self.rows(), self.dim);
        Ok(Tensor::from_vec(self.data, shape, &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_shapes() {
        let mut f = Features::new(2, vec![1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!((f.rows(), f.dim()), (2, 2));
        assert!(f.push(&[1.0]).is_err());
        f.push(&[5.0, 6.0]).unwrap();
        assert_eq!(f.select(&[2, 0, 9]).as_slice(), [5.0, 6.0, 1.0, 2.0]);
        assert!(Features::new(3, vec![0.0; 4]).is_err());
        assert!(Features::from_embeddings(&[]).is_err());
        assert_eq!(Features::default().rows(), 0);
    }

    #[test]
    fn standardised_columns_have_mean_0_and_std_1_and_constant_ones_vanish() {
        let data = (0..5000).flat_map(|i| [i as f32 * 0.3 + 4.0, 7.0, (i % 3) as f32]).collect();
        let mut f = Features::new(3, data).unwrap();
        let (mean, std) = f.moments();
        f.standardise(&mean, &std);
        let (mean, std) = f.moments();
        for i in [0, 2] {
            assert!(mean[i].abs() < 1e-5 && (std[i] - 1.0).abs() < 1e-5);
        }
        assert_eq!((mean[1], std[1]), (0.0, 0.0));
    }
}
