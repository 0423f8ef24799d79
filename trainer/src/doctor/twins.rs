//! Pictures that occur more than once: in one folder, and across two.

use std::collections::HashMap;

use rayon::prelude::*;

use super::fingerprint::{Fingerprint, Orientation};
use super::near::{Found, NearIndex};
use super::survey::Survey;

/// Pictures that are one: places in the survey, ascending, at least two.
pub type Group = Vec<u32>;

/// Copies within one folder.
#[derive(Clone, Debug, Default)]
pub struct Copies {
    /// Files of equal bytes, group by group.
    pub exact: Vec<Group>,
    /// Pictures that look alike (one of each exact group stands for it), group by group.
    pub near: Vec<Group>,
    /// How two of a near group lie to each other: (a later one, an earlier one) and the orientation.
    pub turned: HashMap<u32, Orientation>,
    /// Whether the search for near copies was cut short: there may be more.
    pub at_least: bool,
}

impl Copies {
    /// Pictures that could go without losing one: all but one of each group.
    #[must_use]
    pub fn spare(groups: &[Group]) -> usize {
        groups.iter().map(|g| g.len() - 1).sum()
    }
}

/// A picture of the second folder that is in the first one too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leak {
    /// Place in the second survey.
    pub there: u32,
    /// Place in the first survey.
    pub here: u32,
    /// How the copy is laid; `None` for equal bytes.
    pub near: Option<Orientation>,
}

/// Pictures of `survey` that can stand for all: one of each group of equal bytes, no blank ones.
fn distinct(survey: &Survey, exact: &[Group]) -> Vec<u32> {
    let mut keep: Vec<bool> = survey.pictures.iter().map(|(_, f)| !f.blank).collect();
    exact.iter().flat_map(|g| &g[1..]).for_each(|&i| keep[i as usize] = false);
    (0..keep.len() as u32).filter(|&i| keep[i as usize]).collect()
}

fn prints(survey: &Survey, places: &[u32]) -> Vec<Fingerprint> {
    places.iter().map(|&i| survey.pictures[i as usize].1.fingerprint).collect()
}

/// Groups of equal bytes, in the order of their first member.
fn exact(survey: &Survey) -> Vec<Group> {
    let mut order: Vec<u32> = (0..survey.pictures.len() as u32).collect();
    let digest = |i: u32| survey.pictures[i as usize].1.digest;
    order.sort_unstable_by_key(|&i| (digest(i), i));
    let groups = order.chunk_by(|&a, &b| digest(a) == digest(b));
    let mut groups: Vec<Group> = groups.filter(|g| g.len() > 1).map(<[u32]>::to_vec).collect();
    groups.sort_unstable();
    groups
}

/// Finds the copies within a folder.
#[must_use]
pub fn copies(survey: &Survey) -> Copies {
    let exact = exact(survey);
    let places = distinct(survey, &exact);
    let prints = prints(survey, &places);
    let index = NearIndex::new(prints.clone());
    let found: Vec<Found> = prints.par_iter().enumerate().map(|(i, p)| index.search(*p, i)).collect();
    let mut copies = Copies { exact, ..Copies::default() };
    let mut sets = Sets::new(places.len());
    for (i, found) in found.iter().enumerate() {
        copies.at_least |= found.cut_short;
        for m in &found.matches {
            sets.join(i, m.index as usize);
        }
        let nearest = found.matches.iter().min_by_key(|m| m.distance);
        if let Some(m) = nearest.filter(|m| !m.orientation.words().is_empty()) {
            copies.turned.insert(places[i], m.orientation);
        }
    }
    let mut groups: HashMap<usize, Group> = HashMap::new();
    for (i, &place) in places.iter().enumerate() {
        groups.entry(sets.root(i)).or_default().push(place);
    }
    copies.near = groups.into_values().filter(|g| g.len() > 1).collect();
    copies.near.sort_unstable();
    copies
}

/// Pictures of `other` that are in `survey` too, by bytes or by looks; at most one pair for each.
#[must_use]
pub fn leaks(survey: &Survey, other: &Survey) -> Vec<Leak> {
    let by_digest: HashMap<[u8; 16], u32> =
        survey.pictures.iter().enumerate().rev().map(|(i, (_, f))| (f.digest, i as u32)).collect();
    let places = distinct(survey, &[]);
    let index = NearIndex::new(prints(survey, &places));
    let leak = |(there, (_, facts)): (usize, &(_, super::facts::Facts))| {
        let there = there as u32;
        if let Some(&here) = by_digest.get(&facts.digest) {
            return Some(Leak { there, here, near: None });
        }
        if facts.blank {
            return None;
        }
        let found = index.search(facts.fingerprint, places.len());
        let nearest = found.matches.iter().min_by_key(|m| m.distance)?;
        Some(Leak { there, here: places[nearest.index as usize], near: Some(nearest.orientation) })
    };
    other.pictures.par_iter().enumerate().filter_map(leak).collect()
}

/// Disjoint sets, joined by size.
struct Sets {
    parent: Vec<u32>,
    size: Vec<u32>,
}

impl Sets {
    fn new(n: usize) -> Self {
        Self { parent: (0..n as u32).collect(), size: vec![1; n] }
    }

    fn root(&mut self, mut i: usize) -> usize {
        while self.parent[i] as usize != i {
            self.parent[i] = self.parent[self.parent[i] as usize];
            i = self.parent[i] as usize;
        }
        i
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        if a == b {
            return;
        }
        let (large, small) = if self.size[a] >= self.size[b] { (a, b) } else { (b, a) };
        self.parent[small] = large as u32;
        self.size[large] += self.size[small];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::survey::SurveyOptions;
    use image::imageops;
    use std::ops::ControlFlow;
    use std::path::Path;

    const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

    fn survey(dir: &Path) -> Survey {
        Survey::of(dir, &SurveyOptions::default(), &mut |_| ControlFlow::Continue(())).unwrap()
    }

    fn name(survey: &Survey, place: u32) -> String {
        survey.pictures[place as usize].0.display().to_string()
    }

    #[test]
    fn copies_and_leaks_among_real_pictures() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for file in ["dress-1", "hat-1", "hat-2", "outwear-1", "pants-1", "shoes-1", "skirt-1", "t-shirt-1"] {
            std::fs::copy(format!("{EXAMPLES}/{file}.jpg"), a.path().join(format!("{file}.jpg"))).unwrap();
        }
        let open = |file: &str| image::open(format!("{EXAMPLES}/{file}.jpg")).unwrap().to_rgb8();
        std::fs::copy(format!("{EXAMPLES}/hat-1.jpg"), a.path().join("same-hat.jpg")).unwrap();
        let dress = open("dress-1");
        let half =
            imageops::resize(&dress, dress.width() / 2, dress.height() / 2, imageops::FilterType::Triangle);
        half.save(a.path().join("small-dress.png")).unwrap();
        imageops::rotate90(&open("shoes-1")).save(a.path().join("turned-shoes.png")).unwrap();
        let (one, tint) = (image::Rgb([9, 9, 9]), image::Rgb([9, 9, 200]));
        image::RgbImage::from_pixel(50, 50, one).save(a.path().join("z-blank-1.png")).unwrap();
        image::RgbImage::from_pixel(50, 50, tint).save(a.path().join("z-blank-2.png")).unwrap();
        let here = survey(a.path());
        let found = copies(&here);
        let named = |groups: &[Group]| -> Vec<Vec<String>> {
            groups.iter().map(|g| g.iter().map(|&i| name(&here, i)).collect()).collect()
        };
        assert_eq!(named(&found.exact), [["hat-1.jpg", "same-hat.jpg"]]);
        assert_eq!(
            named(&found.near),
            [["dress-1.jpg", "small-dress.png"], ["shoes-1.jpg", "turned-shoes.png"]]
        );
        assert_eq!(Copies::spare(&found.near), 2);
        let turned: Vec<_> = found.turned.iter().map(|(i, o)| (name(&here, *i), o.words())).collect();
        assert_eq!(turned, [("turned-shoes.png".to_owned(), "turned by 90°")]);

        std::fs::copy(format!("{EXAMPLES}/pants-1.jpg"), b.path().join("pants.jpg")).unwrap();
        std::fs::copy(format!("{EXAMPLES}/outwear-2.jpg"), b.path().join("new.jpg")).unwrap();
        imageops::flip_horizontal(&open("skirt-1")).save(b.path().join("skirt.png")).unwrap();
        let there = survey(b.path());
        let leaks = leaks(&here, &there);
        let named: Vec<_> = leaks
            .iter()
            .map(|l| (name(&there, l.there), name(&here, l.here), l.near.map(Orientation::words)))
            .collect();
        assert_eq!(
            named,
            [
                ("pants.jpg".to_owned(), "pants-1.jpg".to_owned(), None),
                ("skirt.png".to_owned(), "skirt-1.jpg".to_owned(), Some("mirrored")),
            ]
        );
    }
}
