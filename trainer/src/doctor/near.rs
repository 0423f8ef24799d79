//! Finding near copies among many pictures without comparing all with all.
//!
//! The 64 coarse signs are cut into four bands of 16. Two pictures that differ in at most 7 coarse signs differ in at
//! most one within some band, so it is enough to look into the 17 buckets around each band; with 11 signs and two
//! flips it is 137 buckets (multi-index hashing: Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with
//! Multi-Index Hashing", 2012). What is found there is confirmed by the whole fingerprint.

use super::fingerprint::{Fingerprint, Orientation};

/// Up to this many pictures two flips in a band are tried, above it one: eight times fewer buckets for a few copies
/// missed.
const WIDE_SEARCH: usize = 200_000;
/// Signs that near copies may differ in, of 255. Scaled and recompressed copies stay below 40; the nearest of different
/// clothes photographed alike begin at 41 and of CIFAR-10's unrelated pictures at about 65. Retouched or recoloured
/// copies reach 60: they are given up for not accusing different things of being one.
pub const RADIUS: u32 = 40;
/// Matches that one search gives at most: enough to join groups.
const MATCHES: usize = 8;
/// Comparisons that one search makes at most, so that a million frames of one still camera end too.
const COMPARISONS: usize = 100_000;

const BANDS: usize = 4;
const KEYS: usize = 1 << 16;

/// A near copy that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// Its place in the index.
    pub index: u32,
    /// Signs that differ.
    pub distance: u32,
    /// How the query has to be laid to look like it.
    pub orientation: Orientation,
}

/// What a search gave.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Matches, in no particular order, at most eight.
    pub matches: Vec<Match>,
    /// Whether comparisons were left out; there may be further matches then.
    pub cut_short: bool,
}

/// Members of one band sorted by their key.
struct Band {
    starts: Vec<u32>,
    members: Vec<u32>,
}

impl Band {
    fn new(prints: &[Fingerprint], band: usize) -> Self {
        let mut starts = vec![0u32; KEYS + 1];
        for print in prints {
            starts[key(print.coarse(), band) + 1] += 1;
        }
        for k in 0..KEYS {
            starts[k + 1] += starts[k];
        }
        let mut next = starts.clone();
        let mut members = vec![0u32; prints.len()];
        for (i, print) in prints.iter().enumerate() {
            let place = &mut next[key(print.coarse(), band)];
            members[*place as usize] = i as u32;
            *place += 1;
        }
        Self { starts, members }
    }

    /// Members of a bucket, ascending.
    fn bucket(&self, key: usize) -> &[u32] {
        &self.members[self.starts[key] as usize..self.starts[key + 1] as usize]
    }
}

fn key(coarse: u64, band: usize) -> usize {
    (coarse >> (16 * band) & 0xffff) as usize
}

/// Fingerprints that can be searched: 48 bytes a picture and 1 MiB.
pub struct NearIndex {
    prints: Vec<Fingerprint>,
    bands: [Band; BANDS],
    /// Changes to a key whose buckets are looked into, none first.
    masks: Vec<usize>,
    /// Coarse signs that near copies may differ in, of 63.
    coarse_radius: u32,
}

impl NearIndex {
    /// Over `prints`, in their order.
    #[must_use]
    pub fn new(prints: Vec<Fingerprint>) -> Self {
        let flips = if prints.len() <= WIDE_SEARCH { 2 } else { 1 };
        Self::with_flips(prints, flips)
    }

    fn with_flips(prints: Vec<Fingerprint>, flips: u32) -> Self {
        let bands = std::array::from_fn(|band| Band::new(&prints, band));
        let mut masks: Vec<usize> = (0..KEYS).filter(|m| m.count_ones() <= flips).collect();
        masks.sort_by_key(|m| m.count_ones());
        Self { prints, bands, masks, coarse_radius: BANDS as u32 * (flips + 1) - 1 }
    }

    /// Near copies of `query`, in any of eight orientations, among the first `below` fingerprints.
    #[must_use]
    pub fn search(&self, query: Fingerprint, below: usize) -> Found {
        let mut found = Found::default();
        let mut left = COMPARISONS;
        for orientation in Orientation::ALL {
            let laid = query.oriented(orientation);
            let coarse = laid.coarse();
            for (band, members) in self.bands.iter().enumerate() {
                let middle = key(coarse, band);
                for bucket in self.masks.iter().map(|mask| members.bucket(middle ^ mask)) {
                    let earlier = bucket.partition_point(|&i| (i as usize) < below);
                    let looked = earlier.min(left);
                    left -= looked;
                    found.cut_short |= looked < earlier;
                    for &index in &bucket[..looked] {
                        self.compare(laid, coarse, index, orientation, &mut found.matches);
                    }
                    if found.matches.len() >= MATCHES || left == 0 {
                        return found;
                    }
                }
            }
        }
        found
    }

    fn compare(&self, laid: Fingerprint, coarse: u64, index: u32, as_laid: Orientation, to: &mut Vec<Match>) {
        let other = self.prints[index as usize];
        if (coarse ^ other.coarse()).count_ones() > self.coarse_radius || to.len() >= MATCHES {
            return;
        }
        let distance = laid.distance(other);
        if distance <= RADIUS && to.iter().all(|m| m.index != index) {
            to.push(Match { index, distance, orientation: as_laid });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::{Purpose, stream};
    use rand_chacha::rand_core::Rng;

    /// White noise through the real transform: signs as random as they come.
    fn noise(seed: u64) -> Vec<f32> {
        let mut rng = stream(seed, Purpose::Split, 3, 0);
        (0..1024).map(|_| (rng.next_u32() >> 8) as f32).collect()
    }

    #[test]
    fn equals_comparing_all_with_all() {
        // 300 pictures, each with a copy that carries more and more noise.
        let mut prints = Vec::new();
        for i in 0..300u64 {
            let own = noise(i);
            let other = noise(1000 + i);
            let share = i as f32 / 300.0 * 0.6;
            let copy: Vec<f32> = own.iter().zip(&other).map(|(a, b)| a + share * b).collect();
            prints.push(Fingerprint::of_luma(&own).unwrap());
            let laid = Orientation::ALL[i as usize % 8];
            prints.push(Fingerprint::of_luma(&copy).unwrap().oriented(laid));
        }
        for flips in [1, 2] {
            check(&prints, &NearIndex::with_flips(prints.clone(), flips));
        }
    }

    fn check(prints: &[Fingerprint], index: &NearIndex) {
        let (mut found_any, mut missed_any) = (false, false);
        for (i, print) in prints.iter().enumerate() {
            let mut want: Vec<u32> = (0..i)
                .filter(|&j| {
                    Orientation::ALL.iter().any(|o| {
                        let laid = print.oriented(*o);
                        laid.distance(prints[j]) <= RADIUS
                            && (laid.coarse() ^ prints[j].coarse()).count_ones() <= index.coarse_radius
                    })
                })
                .map(|j| j as u32)
                .collect();
            want.sort_unstable();
            let found = index.search(*print, i);
            let mut got: Vec<u32> = found.matches.iter().map(|m| m.index).collect();
            got.sort_unstable();
            assert_eq!(got, want);
            found_any |= !want.is_empty();
            missed_any |= i % 2 == 1 && want.is_empty();
        }
        assert!(found_any && missed_any);
    }

    #[test]
    fn a_million_equal_pictures_do_not_hang() {
        let index = NearIndex::new(vec![Fingerprint::of_luma(&noise(1)).unwrap(); 200_000]);
        let found = index.search(Fingerprint::of_luma(&noise(2)).unwrap(), 200_000);
        assert!(found.matches.is_empty());
        let found = index.search(Fingerprint::of_luma(&noise(1)).unwrap(), 200_000);
        assert_eq!(found.matches.len(), MATCHES);
    }
}
