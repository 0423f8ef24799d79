//! The leading eigenvectors' subspace of a symmetric positive definite matrix.
//!
//! Orthogonal iteration (Golub & Van Loan, "Matrix Computations", section 8.2.4): a basis is multiplied by the matrix
//! and made orthonormal again, until it spans the directions of the largest eigenvalues. Which basis of them does not
//! matter to a whitening, so single eigenvectors are not told apart.

use rayon::prelude::*;

use crate::data::random::{Purpose, stream, unit};
use crate::whiten::inverse_cholesky;

/// Rounds; what is left of a direction outside falls by the ratio of the eigenvalues on either side of the cut in each.
/// Where that is near 1, either direction is as good.
const ROUNDS: usize = 30;

/// An orthonormal basis, row-major `[dim, dims]`, of the subspace of the `dims` largest eigenvalues of `a` `[dim, dim]`.
/// The same for equal matrices. `None` when `a` is not positive definite.
#[must_use]
pub fn leading(a: &[f64], dim: usize, dims: usize) -> Option<Vec<f64>> {
    let mut rng = stream(0, Purpose::Subspace, 0, 0);
    let start = (0..dim * dims).map(|_| unit(&mut rng) - 0.5).collect();
    let mut basis = orthonormal(start, dims)?;
    for _ in 0..ROUNDS {
        basis = orthonormal(product(a, &basis, dim), dims)?;
    }
    // Once more, for what squaring the columns' products lost.
    orthonormal(basis, dims)
}

/// `basisᵀ · a · basis`: what `a` is inside the subspace, `[dims, dims]`.
#[must_use]
pub fn project(a: &[f64], basis: &[f64], dim: usize) -> Vec<f64> {
    let dims = basis.len() / dim;
    inner(basis, &product(a, basis, dim), dims)
}

/// `a · b` for `a` `[dim, dim]`.
fn product(a: &[f64], b: &[f64], dim: usize) -> Vec<f64> {
    let dims = b.len() / dim;
    let mut out = vec![0f64; b.len()];
    out.par_chunks_mut(dims).zip(a.par_chunks(dim)).for_each(|(out, a)| {
        for (a, b) in a.iter().zip(b.chunks_exact(dims)) {
            out.iter_mut().zip(b).for_each(|(o, b)| *o += a * b);
        }
    });
    out
}

/// `xᵀ · y`, `[dims, dims]`.
fn inner(x: &[f64], y: &[f64], dims: usize) -> Vec<f64> {
    let mut out = vec![0f64; dims * dims];
    out.par_chunks_mut(dims).enumerate().for_each(|(i, out)| {
        for (x, y) in x.chunks_exact(dims).zip(y.chunks_exact(dims)) {
            out.iter_mut().zip(y).for_each(|(o, y)| *o += x[i] * y);
        }
    });
    out
}

/// The columns of `x` made orthonormal: `x · L⁻ᵀ` for `xᵀx = L·Lᵀ`.
fn orthonormal(x: Vec<f64>, dims: usize) -> Option<Vec<f64>> {
    let inverse = inverse_cholesky(inner(&x, &x, dims), dims)?;
    let mut out = vec![0f64; x.len()];
    out.par_chunks_mut(dims).zip(x.par_chunks(dims)).for_each(|(out, x)| {
        for (j, out) in out.iter_mut().enumerate() {
            *out = x[..=j].iter().zip(&inverse[j * dims..]).map(|(x, l)| x * l).sum();
        }
    });
    Some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn it_finds_the_largest_directions_of_a_turned_diagonal() {
        // a = h·d·h with h = I − 2wwᵀ/(w·w): eigenvectors are h's columns.
        let (dim, dims) = (40, 5);
        let w: Vec<f64> = (0..dim).map(|i| 1.0 + (i as f64 * 1.7).sin()).collect();
        let norm: f64 = w.iter().map(|w| w * w).sum();
        let h = |i: usize, j: usize| f64::from(u8::from(i == j)) - 2.0 * w[i] * w[j] / norm;
        let value = |i: usize| if i < dims { 9.0 - i as f64 } else { 1.0 / (i as f64) };
        let a: Vec<f64> = (0..dim * dim)
            .map(|at| (0..dim).map(|k| h(at / dim, k) * value(k) * h(k, at % dim)).sum())
            .collect();
        let basis = leading(&a, dim, dims).unwrap();
        for k in 0..dims {
            // The length of h's k-th column inside the subspace.
            let inside: f64 =
                (0..dims).map(|j| (0..dim).map(|i| h(i, k) * basis[i * dims + j]).sum::<f64>().powi(2)).sum();
            assert!((inside - 1.0).abs() < 1e-9, "{k}: {inside}");
        }
        for (at, value) in inner(&basis, &basis, dims).into_iter().enumerate() {
            assert!((value - f64::from(u8::from(at % dims == at / dims))).abs() < 1e-12, "{at}: {value}");
        }
        let trace: f64 = (0..dims).map(|i| project(&a, &basis, dim)[i * dims + i]).sum();
        assert!((trace - 35.0).abs() < 1e-9, "9 + 8 + 7 + 6 + 5, not {trace}");
        assert!(leading(&vec![0.0; dim * dim], dim, dims).is_none());
    }
}
