//! Parity: whether the exported graph gives the vectors that the trained network gives.

use latentd_model::{Embedding, Golden};

/// How far the two sides may be apart, as a part of how far the pictures are apart.
const MAX_RELATIVE_ERROR: f64 = 0.05;

/// The agreement of two encoders on the same pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parity {
    /// On how many pictures.
    pub pictures: usize,
    /// The smallest cosine between the two vectors of a picture.
    pub min_cosine: f64,
    /// The mean of these cosines.
    pub mean_cosine: f64,
    /// The largest distance between the two vectors of a picture, over the root mean square
    /// distance of the pictures' vectors from their mean. The cosine alone says little about an
    /// encoder whose vectors all point nearly the same way, as those behind a ReLU do.
    pub relative_error: f64,
}

/// Why the two sides don't agree.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ParityError {
    /// They gave different numbers of vectors.
    #[error("for {pictures} pictures the trained network gave {trained} vectors and ONNX Runtime {exported}")]
    Count {
        /// Pictures given to both.
        pictures: usize,
        /// Vectors from the trained network.
        trained: usize,
        /// Vectors from ONNX Runtime.
        exported: usize,
    },
    /// The vectors have different lengths.
    #[error("the trained network gives vectors of {trained} numbers and the exported graph of {exported}")]
    Dim {
        /// From the trained network.
        trained: usize,
        /// From ONNX Runtime.
        exported: usize,
    },
    /// The vectors differ.
    #[error(
        "the exported graph differs from the trained network on {} pictures: cosine min {:.6}, mean \
         {:.6} (at least {} is asked for), error {:.4} of the spread (at most {MAX_RELATIVE_ERROR}); \
         nothing was written",
        .0.pictures, .0.min_cosine, .0.mean_cosine, Golden::MIN_COSINE, .0.relative_error
    )]
    Differs(Parity),
}

impl Parity {
    /// Compares the vectors of the same pictures in the same order.
    pub fn measure(trained: &[Embedding], exported: &[Embedding]) -> Result<Self, ParityError> {
        let pictures = trained.len();
        if pictures == 0 || pictures != exported.len() {
            return Err(ParityError::Count { pictures, trained: pictures, exported: exported.len() });
        }
        let (mut min_cosine, mut sum, mut worst) = (f64::INFINITY, 0.0, 0.0_f64);
        for (a, b) in trained.iter().zip(exported) {
            if a.dim() != b.dim() {
                return Err(ParityError::Dim { trained: a.dim(), exported: b.dim() });
            }
            let cosine = cosine(a.as_slice(), b.as_slice());
            min_cosine = min_cosine.min(cosine);
            sum += cosine;
            worst = worst.max(squared_distance(a.as_slice(), b.as_slice().iter().map(|&x| f64::from(x))));
        }
        let spread = spread(exported);
        let relative_error = if worst == 0.0 { 0.0 } else { (worst / spread).sqrt() };
        Ok(Self { pictures, min_cosine, mean_cosine: sum / pictures as f64, relative_error })
    }

    /// Refuses a graph that is not the trained network.
    pub fn accept(self) -> Result<Self, ParityError> {
        // Of one picture, or of equal ones, there is no spread to compare with.
        let near = self.relative_error <= MAX_RELATIVE_ERROR || self.relative_error.is_infinite();
        if self.min_cosine >= f64::from(Golden::MIN_COSINE) && near {
            Ok(self)
        } else {
            Err(ParityError::Differs(self))
        }
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum() };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn squared_distance(a: &[f32], b: impl Iterator<Item = f64>) -> f64 {
    a.iter().zip(b).map(|(&x, y)| (f64::from(x) - y).powi(2)).sum()
}

/// The mean squared distance of the vectors from their mean.
fn spread(vectors: &[Embedding]) -> f64 {
    let n = vectors.len() as f64;
    let mut mean = vec![0.0; vectors[0].dim()];
    for v in vectors {
        for (m, &x) in mean.iter_mut().zip(v.as_slice()) {
            *m += f64::from(x) / n;
        }
    }
    vectors.iter().map(|v| squared_distance(v.as_slice(), mean.iter().copied())).sum::<f64>() / n
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn vector(values: &[f32]) -> Embedding {
        Embedding::from_unnormalised(values.to_vec()).unwrap()
    }

    #[test]
    fn equal_vectors_agree_and_swapped_ones_do_not() {
        let a = [vector(&[1.0, 0.1, 0.0]), vector(&[1.0, 0.0, 0.3])];
        let parity = Parity::measure(&a, &a).unwrap().accept().unwrap();
        assert_eq!((parity.pictures, parity.relative_error), (2, 0.0));
        assert!((parity.min_cosine - 1.0).abs() < 1e-6);
        let swapped = [a[1].clone(), a[0].clone()];
        assert!(Parity::measure(&a, &swapped).unwrap().accept().is_err());
    }

    #[test]
    fn vectors_that_are_all_alike_are_still_told_apart() {
        // Both pictures have cosine 0.999998 to each other, so the cosine can't tell them apart.
        let a = [vector(&[1.0, 0.001]), vector(&[1.0, -0.001])];
        let swapped = [a[1].clone(), a[0].clone()];
        let parity = Parity::measure(&a, &swapped).unwrap();
        assert!(parity.min_cosine > 0.9999);
        let error = parity.accept().unwrap_err().to_string();
        assert!(error.contains("error 2.0"), "{error}");
    }

    #[test]
    fn other_numbers_of_vectors_are_refused() {
        let a = [vector(&[1.0, 0.0])];
        assert!(matches!(Parity::measure(&a, &[]), Err(ParityError::Count { .. })));
        let b = [vector(&[1.0, 0.0, 0.0])];
        assert!(matches!(Parity::measure(&a, &b), Err(ParityError::Dim { .. })));
    }
}
