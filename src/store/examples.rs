//! Examples: several things to be near to or far from, as one vector.

use latentd_model::{Contract, Embedding};

use super::{CollectionName, InvalidValue, StoreError};

/// A vector and the encoder that made it.
pub type Example = (Embedding, Contract);

/// The mean of `near` less the mean of `far`, of norm 1 (Rocchio 1971); of one that is alone, itself.
///
/// # Errors
/// When they are of several encoders or lengths, when there is none to be near to, or when nothing is left of them.
pub fn joined(collection: &CollectionName, near: &[Example], far: &[Example]) -> Result<Example, StoreError> {
    let (first, contract) = near.first().ok_or(InvalidValue::Examples("there is nothing to be near to"))?;
    if let ([alone], []) = (near, far) {
        return Ok(alone.clone());
    }
    let mut sum = vec![0f32; first.dim()];
    for (sign, examples) in [(1.0, near), (-1.0, far)] {
        let weight = sign / examples.len().max(1) as f32;
        for (vector, other) in examples {
            if other != contract {
                let (collection_contract, vector_contract) = (*contract, *other);
                let collection = collection.clone();
                return Err(StoreError::ContractMismatch {
                    collection,
                    collection_contract,
                    vector_contract,
                });
            }
            if vector.dim() != sum.len() {
                let (expected, actual) = (sum.len(), vector.dim());
                let collection = collection.clone();
                return Err(StoreError::DimensionMismatch { collection, expected, actual });
            }
            sum.iter_mut().zip(vector.as_slice()).for_each(|(sum, value)| *sum += weight * value);
        }
    }
    // Rounding leaves something of what is equal, whose direction says nothing.
    let left = sum.iter().map(|value| value * value).sum::<f32>();
    let nowhere = InvalidValue::Examples("what to be near to and what to be far from cancel each other out");
    let vector = Embedding::from_unnormalised(sum).ok().filter(|_| left > 1e-9).ok_or(nowhere)?;
    Ok((vector, *contract))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(values: &[f32], contract: u8) -> Example {
        (Embedding::from_unnormalised(values.to_vec()).unwrap(), Contract::from_bytes([contract; 8]))
    }

    #[test]
    fn means_are_taken_and_taken_away() {
        let of = |near: &[Example], far: &[Example]| {
            joined(&CollectionName::default(), near, far).map(|joined| joined.0.as_slice().to_vec())
        };
        let (x, y) = (example(&[1.0, 0.0], 1), example(&[0.0, 1.0], 1));
        assert_eq!(of(std::slice::from_ref(&x), &[]).unwrap(), [1.0, 0.0]);
        let half = 0.5f32.sqrt();
        let near = |found: Vec<f32>, wanted: [f32; 2]| {
            assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {wanted:?}");
        };
        near(of(&[x.clone(), y.clone()], &[]).unwrap(), [half, half]);
        near(of(std::slice::from_ref(&x), std::slice::from_ref(&y)).unwrap(), [half, -half]);
        // Two that are alike weigh no more than one on the other side.
        near(of(std::slice::from_ref(&x), &[y.clone(), y.clone()]).unwrap(), [half, -half]);
        let code = |near: &[Example], far: &[Example]| of(near, far).unwrap_err().code();
        assert_eq!(code(&[], &[]), "invalid_search");
        assert_eq!(code(std::slice::from_ref(&x), std::slice::from_ref(&x)), "invalid_search");
        let thirds = [x.clone(), y.clone(), example(&[0.6, 0.8], 1)];
        assert_eq!(
            code(&thirds, &[thirds[2].clone(), thirds[0].clone(), thirds[1].clone()]),
            "invalid_search"
        );
        assert_eq!(code(&[x.clone(), example(&[1.0, 0.0], 2)], &[]), "contract_mismatch");
        assert_eq!(code(&[x, example(&[1.0, 0.0, 0.0], 1)], &[]), "dimension_mismatch");
    }
}
