//! Diversity: neighbours that are near to what was asked for and not all alike.

use latentd_model::Embedding;

use super::{InvalidValue, Neighbour, Query};

/// How much neighbours are to differ from each other: from 0, which leaves the order of scores, to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Diversity(f32);

impl Diversity {
    /// A number from 0 to 1.
    ///
    /// # Errors
    /// Any other number.
    pub fn new(value: f32) -> Result<Self, InvalidValue> {
        if (0.0..=1.0).contains(&value) { Ok(Self(value)) } else { Err(InvalidValue::Diversity) }
    }

    /// Whether it changes anything; then it takes the neighbours' vectors.
    #[must_use]
    pub fn matters(self) -> bool {
        self.0 > 0.0
    }

    /// How many neighbours to choose `k` from.
    #[must_use]
    pub fn candidates(self, k: usize) -> usize {
        if self.matters() { (4 * k).clamp(50, Query::MAX_K).max(k) } else { k }
    }

    /// Chooses `k` of `found` by maximal marginal relevance (Carbonell & Goldstein 1998): each next one has the greatest
    /// (1 − diversity) · score − diversity · (its greatest similarity to those chosen before). Neighbours without a
    /// vector count as unlike all others. Breaks off when nobody waits any more, as `stopped` says.
    #[must_use]
    pub fn choose(self, mut found: Vec<Neighbour>, k: usize, stopped: impl Fn() -> bool) -> Vec<Neighbour> {
        let Self(diversity) = self;
        let mut alike = vec![-1f32; found.len()];
        let mut chosen: Vec<Neighbour> = Vec::with_capacity(k.min(found.len()));
        while chosen.len() < k && !found.is_empty() && !stopped() {
            // Before the first there is nothing to be unlike to: the nearest.
            let worth = |at: usize| (1.0 - diversity) * found[at].score - diversity * alike[at];
            let best = (1..found.len()).fold(0, |best, at| if worth(at) > worth(best) { at } else { best });
            // In order, so that of equals the nearer one comes first.
            let next = found.remove(best);
            alike.remove(best);
            for (neighbour, alike) in found.iter().zip(&mut alike) {
                if let (Some(a), Some(b)) = (&neighbour.vector, &next.vector) {
                    *alike = alike.max(similarity(a, b));
                }
            }
            chosen.push(next);
        }
        chosen
    }
}

fn similarity(a: &Embedding, b: &Embedding) -> f32 {
    // Sixteen sums, which the compiler keeps in wide registers.
    let mut sums = [0f32; 16];
    for (a, b) in a.as_slice().chunks(16).zip(b.as_slice().chunks(16)) {
        sums.iter_mut().zip(a).zip(b).for_each(|((sum, a), b)| *sum += a * b);
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::{ItemId, Metadata};

    fn neighbour(id: &str, vector: [f32; 2]) -> Neighbour {
        let vector = Embedding::from_unnormalised(vector.to_vec()).unwrap();
        let query = Embedding::from_unnormalised(vec![1.0, 0.0]).unwrap();
        let score = vector.cosine(&query);
        Neighbour { id: ItemId::new(id).unwrap(), score, metadata: Metadata::default(), vector: Some(vector) }
    }

    #[test]
    fn copies_give_way_to_what_is_different() {
        let found = || {
            vec![
                neighbour("a", [1.0, 0.1]),
                neighbour("copy of a", [1.0, 0.11]),
                neighbour("other side", [1.0, -0.5]),
                neighbour("far", [0.1, 1.0]),
            ]
        };
        let ids = |diversity, k| -> Vec<String> {
            let chosen = Diversity::new(diversity).unwrap().choose(found(), k, || false);
            chosen.iter().map(|neighbour| neighbour.id.to_string()).collect()
        };
        assert_eq!(ids(0.0, 3), ["a", "copy of a", "other side"]);
        assert_eq!(ids(0.5, 2), ["a", "other side"]);
        assert_eq!(ids(0.5, 9).len(), 4);
        assert!(Diversity::new(0.5).unwrap().choose(found(), 9, || true).is_empty());
        assert!(Diversity::new(0.5).unwrap().choose(Vec::new(), 3, || false).is_empty());
    }
}
