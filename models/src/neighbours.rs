//! Neighbours: for each vector of a gallery the nearest of the others, by an exact scan in blocks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, s};

use crate::gallery::Vectors;

/// Rows that are asked about at once.
const ASKED: usize = 128;
/// Rows that they are compared with at once: the block of scores stays in the cache.
const COMPARED: usize = 1024;

/// One neighbour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Near {
    /// Its row.
    pub row: u32,
    /// Its cosine.
    pub cosine: f32,
}

/// The `k` nearest other rows of each row, the nearest first; of equal ones the lower row first.
///
/// Rows are taken as normalised. Memory beside the result: a block of scores for each core.
#[must_use]
pub fn nearest_others(vectors: &Vectors, k: usize) -> Vec<Vec<Near>> {
    let rows = vectors.rows();
    let Ok(all) = ArrayView2::from_shape((rows, vectors.dim()), vectors.as_slice()) else {
        return Vec::new();
    };
    let k = k.min(rows.saturating_sub(1));
    let next = AtomicUsize::new(0);
    let found = Mutex::new(vec![Vec::new(); rows]);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let scan = || {
        let mut scores = Array2::zeros((ASKED, COMPARED));
        loop {
            let first = next.fetch_add(ASKED, Ordering::Relaxed);
            if first >= rows || k == 0 {
                return;
            }
            let best = scan_block(all, first, k, &mut scores);
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            best.into_iter().zip(&mut found[first..]).for_each(|(best, place)| *place = best);
        }
    };
    std::thread::scope(|scope| {
        (1..threads.min(rows.div_ceil(ASKED))).for_each(|_| drop(scope.spawn(scan)));
        scan();
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn scan_block(all: ArrayView2<'_, f32>, first: usize, k: usize, scores: &mut Array2<f32>) -> Vec<Vec<Near>> {
    let rows = all.nrows();
    let asked = all.slice(s![first..rows.min(first + ASKED), ..]);
    let mut best: Vec<Vec<Near>> = vec![Vec::with_capacity(k + 1); asked.nrows()];
    for start in (0..rows).step_by(COMPARED) {
        let compared = all.slice(s![start..rows.min(start + COMPARED), ..]);
        let mut block = scores.slice_mut(s![..asked.nrows(), ..compared.nrows()]);
        general_mat_mul(1.0, &asked, &compared.t(), 0.0, &mut block);
        for (i, (scores, best)) in block.rows().into_iter().zip(&mut best).enumerate() {
            for (row, &cosine) in (start..).zip(scores) {
                let enough = best.len() == k && best.last().is_some_and(|last| cosine <= last.cosine);
                if !enough && row != first + i {
                    insert(best, k, Near { row: row as u32, cosine });
                }
            }
        }
    }
    best
}

/// Puts a row, which is higher than all before, in its place.
fn insert(best: &mut Vec<Near>, k: usize, near: Near) {
    let place = best.partition_point(|other| other.cosine >= near.cosine);
    best.insert(place, near);
    best.truncate(k);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(vectors: &Vectors, k: usize) -> Vec<Vec<usize>> {
        let row = |i: usize| &vectors.as_slice()[i * vectors.dim()..(i + 1) * vectors.dim()];
        let dot = |i, j| row(i).iter().zip(row(j)).map(|(a, b)| a * b).sum::<f32>() + 0.0;
        let nearest = |i: usize| {
            let mut others: Vec<_> = (0..vectors.rows()).filter(|&j| j != i).collect();
            others.sort_by(|&a, &b| dot(i, b).total_cmp(&dot(i, a)).then(a.cmp(&b)));
            others.truncate(k);
            others
        };
        (0..vectors.rows()).map(nearest).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn as_a_plain_sort(seed: u32, rows in 0usize..2500, k in 0usize..12) {
            // Small whole numbers: their sums are exact in any order, and ties are many.
            let number = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) ^ seed).rotate_left(13) % 7;
            let rows = if rows > 600 { rows.min(1300) } else { rows };
            let vectors = Vectors::new(3, (0..3 * rows).map(|i| number(i) as f32 - 3.0).collect());
            let found = nearest_others(&vectors, k);
            let found: Vec<Vec<usize>> =
                found.iter().map(|best| best.iter().map(|near| near.row as usize).collect()).collect();
            prop_assert_eq!(found, plain(&vectors, k));
        }
    }
}
