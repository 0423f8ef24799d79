//! An embedding: one L2-normalised vector of an encoder.

use std::sync::Arc;

/// A vector of unit L2 norm. Cloning shares the numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding(Arc<[f32]>);

/// Why numbers are no embedding.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EmbeddingError {
    /// No numbers at all.
    #[error("a vector needs at least one number")]
    Empty,
    /// A NaN or an infinity.
    #[error("number {index} of the vector is not finite")]
    NotFinite {
        /// Position of the first such number.
        index: usize,
    },
    /// The zero vector, or one so small or large that its norm cannot be divided by.
    #[error("the vector has norm {norm}, so it has no direction")]
    NoDirection {
        /// The norm that was found.
        norm: f64,
    },
    /// A vector that had to be normalised already was not.
    #[error("the vector has norm {norm}, but a normalised one has norm 1")]
    NotNormalised {
        /// The norm that was found.
        norm: f64,
    },
}

fn norm(values: &[f32]) -> Result<f64, EmbeddingError> {
    if values.is_empty() {
        return Err(EmbeddingError::Empty);
    }
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return Err(EmbeddingError::NotFinite { index });
    }
    // In f64 the squares of f32 numbers can neither overflow nor vanish.
    let squares: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    Ok(squares.sqrt())
}

impl Embedding {
    /// How far from 1 the norm of a vector may be that is called normalised.
    pub const NORM_TOLERANCE: f64 = 1e-3;

    /// Divides the vector by its L2 norm.
    ///
    /// # Errors
    /// Empty, non-finite and zero vectors are refused.
    pub fn from_unnormalised(mut values: Vec<f32>) -> Result<Self, EmbeddingError> {
        let norm = norm(&values)?;
        if norm < 1e-30 {
            return Err(EmbeddingError::NoDirection { norm });
        }
        for value in &mut values {
            *value = (f64::from(*value) / norm) as f32;
        }
        Ok(Self(values.into()))
    }

    /// Takes a vector that is normalised already, bit for bit.
    ///
    /// # Errors
    /// Empty and non-finite vectors, and norms further from 1 than [`Self::NORM_TOLERANCE`].
    pub fn from_normalised(values: Vec<f32>) -> Result<Self, EmbeddingError> {
        let norm = norm(&values)?;
        if (norm - 1.0).abs() > Self::NORM_TOLERANCE {
            return Err(EmbeddingError::NotNormalised { norm });
        }
        Ok(Self(values.into()))
    }

    /// The numbers.
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }

    /// How many numbers.
    pub fn dim(&self) -> usize {
        self.0.len()
    }

    /// Cosine similarity in [-1, 1]; of vectors of different lengths, 0.
    ///
    /// The caller has compared the contracts already, so equal lengths are the rule.
    pub fn cosine(&self, other: &Self) -> f32 {
        if self.dim() != other.dim() {
            return 0.0;
        }
        let dot: f64 = self.0.iter().zip(other.0.iter()).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        dot.clamp(-1.0, 1.0) as f32
    }
}

impl AsRef<[f32]> for Embedding {
    fn as_ref(&self) -> &[f32] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn normalises_whatever_has_a_direction(values in prop::collection::vec(-1e20f32..1e20, 1..64)) {
            if let Ok(embedding) = Embedding::from_unnormalised(values) {
                let norm: f64 = embedding.as_slice().iter().map(|&v| f64::from(v).powi(2)).sum();
                prop_assert!((norm.sqrt() - 1.0).abs() < 1e-6);
                prop_assert!((embedding.cosine(&embedding) - 1.0).abs() < 1e-6);
                prop_assert!(Embedding::from_normalised(embedding.as_slice().to_vec()).is_ok());
            }
        }
    }

    #[test]
    fn refuses_what_has_no_direction() {
        assert_eq!(Embedding::from_unnormalised(vec![]), Err(EmbeddingError::Empty));
        assert!(matches!(
            Embedding::from_unnormalised(vec![0.0; 4]),
            Err(EmbeddingError::NoDirection { .. })
        ));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(
                Embedding::from_unnormalised(vec![1.0, bad]),
                Err(EmbeddingError::NotFinite { index: 1 })
            );
        }
        assert!(matches!(
            Embedding::from_normalised(vec![1.0, 1.0]),
            Err(EmbeddingError::NotNormalised { .. })
        ));
    }

    #[test]
    fn extremes_of_f32_keep_their_direction() {
        let huge = Embedding::from_unnormalised(vec![f32::MAX, f32::MAX]).unwrap();
        assert!((huge.as_slice()[0] - 0.5f32.sqrt()).abs() < 1e-6);
        let tiny = Embedding::from_unnormalised(vec![1e-29, 0.0]).unwrap();
        assert_eq!(tiny.as_slice(), [1.0, 0.0]);
    }

    #[test]
    fn cosine_of_known_vectors() {
        let right = Embedding::from_unnormalised(vec![2.0, 0.0]).unwrap();
        let up = Embedding::from_unnormalised(vec![0.0, 3.0]).unwrap();
        let left = Embedding::from_unnormalised(vec![-1.0, 0.0]).unwrap();
        assert_eq!(right.cosine(&up), 0.0);
        assert_eq!(right.cosine(&left), -1.0);
        assert_eq!(right.clone().cosine(&right), 1.0);
    }
}
