//! Eigenvalues of a symmetric matrix.

/// Steps of the QL iteration for one eigenvalue; a handful is usual.
const MAX_SWEEPS: usize = 60;

/// The eigenvalues of the symmetric `[n, n]` matrix `a` (row-major; only its lower half is read and all of it is
/// overwritten), in no particular order: Householder reduction to tridiagonal form, then implicit QL (Golub & Van Loan,
/// "Matrix Computations", sections 8.3 and 8.4). About `4/3 n³` multiplications.
#[must_use]
pub fn symmetric_eigenvalues(a: &mut [f64], n: usize) -> Vec<f64> {
    if n == 0 || a.len() != n * n {
        return Vec::new();
    }
    let (mut diagonal, mut off) = tridiagonal(a, n);
    implicit_ql(&mut diagonal, &mut off);
    diagonal
}

/// Diagonal and sub-diagonal (its last entry is 0) of a tridiagonal matrix with the same eigenvalues.
fn tridiagonal(a: &mut [f64], n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut diagonal = vec![0.0; n];
    let mut off = vec![0.0; n];
    let mut v = vec![0.0; n];
    let mut p = vec![0.0; n];
    for k in (1..n).rev() {
        // Reflect row k onto its last entry before the diagonal; rows 0..k remain.
        let row = &a[k * n..k * n + k];
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        diagonal[k] = a[k * n + k];
        if norm == 0.0 {
            continue;
        }
        let pivot = a[k * n + k - 1];
        let target = if pivot > 0.0 { -norm } else { norm };
        v[..k].copy_from_slice(&a[k * n..k * n + k]);
        v[k - 1] -= target;
        off[k - 1] = target;
        let half = v[..k].iter().map(|x| x * x).sum::<f64>() / 2.0;
        if half == 0.0 {
            continue;
        }
        symmetric_product(a, n, &v[..k], &mut p[..k]);
        p[..k].iter_mut().for_each(|x| *x /= half);
        let shift = p[..k].iter().zip(&v[..k]).map(|(x, y)| x * y).sum::<f64>() / (2.0 * half);
        for i in 0..k {
            p[i] -= shift * v[i];
        }
        for i in 0..k {
            let (vi, pi) = (v[i], p[i]);
            for (j, x) in a[i * n..=i * n + i].iter_mut().enumerate() {
                *x -= vi * p[j] + pi * v[j];
            }
        }
    }
    diagonal[0] = a[0];
    (diagonal, off)
}

/// `p = A v` for the leading block, reading the lower half alone.
fn symmetric_product(a: &[f64], n: usize, v: &[f64], p: &mut [f64]) {
    p.fill(0.0);
    for i in 0..v.len() {
        let row = &a[i * n..i * n + i];
        let mut sum = a[i * n + i] * v[i];
        for ((x, y), out) in row.iter().zip(v).zip(p.iter_mut()) {
            sum += x * y;
            *out += x * v[i];
        }
        p[i] += sum;
    }
}

/// Leaves the eigenvalues in `d`; `e[i]` couples `i` and `i + 1`.
fn implicit_ql(d: &mut [f64], e: &mut [f64]) {
    let n = d.len();
    for l in 0..n {
        for _ in 0..MAX_SWEEPS {
            let small = |m: usize| e[m].abs() <= f64::EPSILON * (d[m].abs() + d[m + 1].abs());
            let m = (l..n - 1).find(|&m| small(m)).unwrap_or(n - 1);
            if m == l {
                break;
            }
            ql_sweep(d, e, l, m);
        }
    }
}

/// One shifted sweep over the block `l..=m`.
fn ql_sweep(d: &mut [f64], e: &mut [f64], l: usize, m: usize) {
    let mut g = (d[l + 1] - d[l]) / (2.0 * e[l]);
    let r = g.hypot(1.0);
    g = d[m] - d[l] + e[l] / (g + if g >= 0.0 { r } else { -r });
    let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
    for i in (l..m).rev() {
        let (f, b) = (s * e[i], c * e[i]);
        let r = f.hypot(g);
        e[i + 1] = r;
        if r == 0.0 {
            d[i + 1] -= p;
            e[m] = 0.0;
            return;
        }
        (s, c) = (f / r, g / r);
        g = d[i + 1] - p;
        let t = (d[i] - g) * s + 2.0 * c * b;
        p = s * t;
        d[i + 1] = g + p;
        g = c * t - b;
    }
    d[l] -= p;
    e[l] = g;
    e[m] = 0.0;
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn sorted(mut values: Vec<f64>) -> Vec<f64> {
        values.sort_by(f64::total_cmp);
        values
    }

    #[test]
    fn known_spectra() {
        assert_eq!(symmetric_eigenvalues(&mut [7.0], 1), [7.0]);
        let two = sorted(symmetric_eigenvalues(&mut [2.0, 1.0, 1.0, 2.0], 2));
        assert!((two[0] - 1.0).abs() < 1e-14 && (two[1] - 3.0).abs() < 1e-14);
        // The second difference: 2 - 2 cos(π k / (n + 1)).
        let n = 50;
        let mut a = vec![0.0; n * n];
        for i in 0..n {
            a[i * n + i] = 2.0;
            if i > 0 {
                a[i * n + i - 1] = -1.0;
                a[(i - 1) * n + i] = -1.0;
            }
        }
        for (k, v) in sorted(symmetric_eigenvalues(&mut a, n)).into_iter().enumerate() {
            let want = 2.0 - 2.0 * (std::f64::consts::PI * (k + 1) as f64 / (n + 1) as f64).cos();
            assert!((v - want).abs() < 1e-12, "{k}: {v} {want}");
        }
        assert!(symmetric_eigenvalues(&mut [1.0; 3], 2).is_empty());
    }

    #[test]
    fn a_rotated_diagonal_keeps_its_values() {
        let n = 60;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let want: Vec<f64> =
            (0..n).map(|i| if i % 7 == 0 { 0.0 } else { rng.random::<f64>() * 10.0 - 2.0 }).collect();
        let mut a = vec![0.0; n * n];
        (0..n).for_each(|i| a[i * n + i] = want[i]);
        // A chain of random reflections I - 2 w wᵀ on both sides.
        for _ in 0..5 {
            let w: Vec<f64> = (0..n).map(|_| rng.random::<f64>() - 0.5).collect();
            let norm = w.iter().map(|x| x * x).sum::<f64>();
            let mut b = a.clone();
            for i in 0..n {
                let dot: f64 = (0..n).map(|k| w[k] * a[k * n + i]).sum::<f64>() * 2.0 / norm;
                (0..n).for_each(|k| b[k * n + i] -= dot * w[k]);
            }
            a.clone_from(&b);
            for i in 0..n {
                let dot: f64 = (0..n).map(|k| w[k] * b[i * n + k]).sum::<f64>() * 2.0 / norm;
                (0..n).for_each(|k| a[i * n + k] -= dot * w[k]);
            }
        }
        for (got, want) in sorted(symmetric_eigenvalues(&mut a, n)).into_iter().zip(sorted(want)) {
            assert!((got - want).abs() < 1e-11, "{got} {want}");
        }
    }
}
