//! The embedding as a map: pictures that the encoder finds alike lie close together.
//!
//! Two principal components are the beginning; t-SNE (van der Maaten, "Accelerating t-SNE using Tree-Based Algorithms",
//! 2014, by the crate bhtsne) then spreads the neighbourhoods out. Its sums depend on the threads, so that the same vectors
//! give maps that differ in their details.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::html::{data_uri, escape};
use super::thumbnail::encode_small;
use crate::data::PictureRef;
use crate::eval::Features;

/// With fewer pictures than this, principal components say as much.
const LEAST_FOR_TSNE: usize = 100;
const PERPLEXITY: f32 = 30.0;
const EPOCHS: usize = 750;
/// Accuracy of the tree: the paper's value.
const THETA: f32 = 0.5;
/// One place in so many at each end may lie outside the map.
const STRAYS: usize = 80;
/// Cells of the map in each direction; at most one picture is shown in each.
const GRID: usize = 20;
/// Pixels of a picture on the map.
const THUMBNAIL: u32 = 48;
/// With more classes than this, colours cannot be told apart.
const COLOURS: [&str; 12] = [
    "#3f7de0", "#e0801f", "#2a9d63", "#d2433c", "#9a63d6", "#8d6a4a", "#dd66aa", "#808a97", "#a3a818",
    "#1fa6bd", "#5a5fc0", "#e3b129",
];

/// A map ready to be drawn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Map {
    /// `x` and `y` between 0 and 1, and the class, for each picture.
    pub points: Vec<([f32; 2], Option<usize>)>,
    /// Names of the classes; none when they are unknown or too many for colours.
    pub classes: Vec<String>,
    /// Pictures with their cell: column, row, JPEG.
    pub pictures: Vec<(usize, usize, Vec<u8>)>,
    /// Whether t-SNE was used.
    pub tsne: bool,
}

/// The map of some pictures; `picture` and `class` as for the contact sheet.
#[must_use]
pub fn map<'p>(
    features: &Features,
    picture: impl Fn(usize) -> Option<PictureRef<'p>>,
    class: impl Fn(usize) -> Option<String>,
) -> Map {
    let (places, tsne) = places(features);
    let names: Vec<Option<String>> = (0..features.rows()).map(class).collect();
    let mut known: BTreeMap<&String, usize> = names.iter().flatten().map(|n| (n, 0)).collect();
    let coloured = (2..=COLOURS.len()).contains(&known.len());
    known.values_mut().enumerate().for_each(|(i, label)| *label = i);
    let label = |name: &Option<String>| name.as_ref().filter(|_| coloured).map(|n| known[n]);
    Map {
        points: places.iter().zip(&names).map(|(p, n)| (*p, label(n))).collect(),
        classes: if coloured { known.keys().map(|k| (*k).clone()).collect() } else { Vec::new() },
        pictures: on_grid(&places, picture),
        tsne,
    }
}

/// Places in the unit square, and whether t-SNE made them.
fn places(features: &Features) -> (Vec<[f32; 2]>, bool) {
    let rows = features.rows();
    if rows < 3 {
        return (vec![[0.5, 0.5]; rows], false);
    }
    let start = principal(features);
    let tsne = rows >= LEAST_FOR_TSNE;
    let mut places = start;
    if tsne {
        // As scikit-learn and openTSNE begin: components of a standard deviation of 1e-4.
        let spread = (places.iter().map(|p| p[0] * p[0]).sum::<f32>() / rows as f32).sqrt().max(1e-12);
        let seed: Vec<f32> = places.iter().flat_map(|p| p.map(|v| v / spread * 1e-4)).collect();
        let samples: Vec<&[f32]> = features.iter().collect();
        let mut fit = bhtsne::tSNE::<f32, &[f32], 2>::new(&samples);
        fit.perplexity(PERPLEXITY).epochs(EPOCHS).initial_embedding(seed).barnes_hut(THETA, |a, b| {
            a.iter().zip(b.iter()).map(|(x, y)| (x - y) * (x - y)).sum::<f32>().sqrt()
        });
        places = fit.embedding().as_chunks::<2>().0.to_vec();
    }
    (unit_square(places), tsne)
}

/// The two directions of most variance, by orthogonal iteration on the covariance; row by row.
fn principal(features: &Features) -> Vec<[f32; 2]> {
    let dim = features.dim();
    let (mean, _) = features.moments();
    let project = |row: &[f32], axis: &[f64]| -> f64 {
        row.iter().zip(&mean).zip(axis).map(|((v, m), a)| (f64::from(*v) - m) * a).sum()
    };
    let mut axes: [Vec<f64>; 2] =
        std::array::from_fn(|k| (0..dim).map(|i| ((i * 7 + 3) as f64 * (k as f64 + 0.37)).sin()).collect());
    for _ in 0..30 {
        for k in 0..2 {
            let mut next = vec![0.0; dim];
            for row in features.iter() {
                let along = project(row, &axes[k]);
                next.iter_mut().zip(row).zip(&mean).for_each(|((n, v), m)| *n += along * (f64::from(*v) - m));
            }
            if k == 1 {
                let overlap: f64 = next.iter().zip(&axes[0]).map(|(a, b)| a * b).sum();
                next.iter_mut().zip(&axes[0]).for_each(|(n, a)| *n -= overlap * a);
            }
            let norm = next.iter().map(|v| v * v).sum::<f64>().sqrt();
            if norm > 1e-12 {
                next.iter_mut().for_each(|v| *v /= norm);
                axes[k] = next;
            }
        }
    }
    features.iter().map(|row| [project(row, &axes[0]) as f32, project(row, &axes[1]) as f32]).collect()
}

/// Stretches the middle of the places over the square; what lies outside, a few strays, comes to its edge.
fn unit_square(mut places: Vec<[f32; 2]>) -> Vec<[f32; 2]> {
    for axis in 0..2 {
        let mut values: Vec<f32> = places.iter().map(|p| p[axis]).filter(|v| v.is_finite()).collect();
        values.sort_by(f32::total_cmp);
        let strays = values.len() / STRAYS;
        let low = values.get(strays).copied().unwrap_or(0.0);
        let high = values.get(values.len().saturating_sub(strays + 1)).copied().unwrap_or(0.0);
        let range = (high - low).max(f32::MIN_POSITIVE);
        for p in &mut places {
            let share = (p[axis] - low) / range;
            p[axis] = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.5 };
        }
    }
    places
}

/// For each cell the picture nearest to its middle.
fn on_grid<'p>(
    places: &[[f32; 2]],
    picture: impl Fn(usize) -> Option<PictureRef<'p>>,
) -> Vec<(usize, usize, Vec<u8>)> {
    let mut nearest: BTreeMap<(usize, usize), (f32, usize)> = BTreeMap::new();
    for (i, place) in places.iter().enumerate() {
        let [column, row] = place.map(|v| ((v * GRID as f32) as usize).min(GRID - 1));
        let middle = |cell: usize| (cell as f32 + 0.5) / GRID as f32;
        let away = (place[0] - middle(column)).powi(2) + (place[1] - middle(row)).powi(2);
        let best = nearest.entry((column, row)).or_insert((away, i));
        if away < best.0 {
            *best = (away, i);
        }
    }
    let drawn = |((column, row), (_, i))| Some((column, row, encode_small(picture(i)?, THUMBNAIL)?));
    nearest.into_iter().filter_map(drawn).collect()
}

/// The section; nothing for fewer than three pictures.
pub(super) fn section(map: &Map) -> String {
    if map.points.len() < 3 {
        return String::new();
    }
    let how = if map.tsne { "t-SNE" } else { "two principal components" };
    let mut out = format!(
        "<section>\n<h2>Map</h2>\n<p class=\"soft small\">{} pictures laid out by their vectors ({how}): what the encoder finds alike lies close \
         together. Distances between far groups mean little.{}</p>\n<div class=\"maps\">{}",
        map.points.len(),
        if map.classes.is_empty() { "" } else { " Colours are folders' names, which training did not see." },
        pictures(map)
    );
    if !map.classes.is_empty() {
        out.push_str(&points(map));
    }
    out.push_str("</div>\n</section>\n");
    out
}

fn pictures(map: &Map) -> String {
    let cell = 1000.0 / GRID as f64;
    let mut svg = "<figure><svg class=\"map\" viewBox=\"0 0 1000 1000\" role=\"img\" aria-label=\"Map of the embedding: pictures\">".to_owned();
    for (column, row, jpeg) in &map.pictures {
        let _ = write!(
            svg,
            "<image x=\"{:.0}\" y=\"{:.0}\" width=\"{:.0}\" height=\"{:.0}\" preserveAspectRatio=\"xMidYMid slice\" href=\"{}\"/>",
            *column as f64 * cell + 1.0,
            *row as f64 * cell + 1.0,
            cell - 2.0,
            cell - 2.0,
            data_uri(jpeg)
        );
    }
    svg.push_str("</svg><figcaption>One picture for each place</figcaption></figure>");
    svg
}

fn points(map: &Map) -> String {
    let mut svg = "<figure><svg class=\"map\" viewBox=\"-12 -12 1024 1024\" role=\"img\" aria-label=\"Map of the embedding: classes\">".to_owned();
    let mut legend = String::new();
    for (label, (name, colour)) in map.classes.iter().zip(COLOURS).enumerate() {
        let _ = write!(svg, "<g fill=\"{colour}\">");
        for ([x, y], _) in map.points.iter().filter(|p| p.1 == Some(label)) {
            let _ = write!(svg, "<circle cx=\"{:.0}\" cy=\"{:.0}\" r=\"7\"/>", x * 1000.0, y * 1000.0);
        }
        svg.push_str("</g>");
        let _ = write!(legend, "<span><i style=\"background:{colour}\"></i>{}</span>", escape(name));
    }
    let _ = write!(svg, "</svg><figcaption class=\"legend\">{legend}</figcaption></figure>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::{Purpose, stream, unit};

    /// Three clouds in 12 dimensions.
    fn clouds(rows: usize) -> Features {
        let mut rng = stream(5, Purpose::Split, 0, 0);
        let value =
            |rng: &mut _, d: usize, label: usize| unit(rng) as f32 * 0.3 + if d == label { 1.0 } else { 0.0 };
        let data = (0..rows * 12).map(|i| value(&mut rng, i % 12, (i / 12) % 3)).collect();
        Features::new(12, data).unwrap()
    }

    #[test]
    fn groups_stay_together() {
        let features = clouds(240);
        let rgb = [200u8; 48];
        let draw =
            |class: fn(usize) -> Option<String>| map(&features, |_| PictureRef::new(4, 4, &rgb), class);
        let drawn = draw(|i| Some(format!("class {}", i % 3)));
        assert!(drawn.tsne && drawn.classes.len() == 3 && !drawn.pictures.is_empty());
        // The nearest point on the map is of the same group for nearly all.
        let near = |i: usize| {
            let away = |j: &usize| {
                let (a, b) = (drawn.points[i].0, drawn.points[*j].0);
                (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2)
            };
            (0..240).filter(|j| *j != i).min_by(|a, b| away(a).total_cmp(&away(b))).unwrap()
        };
        let same = (0..240).filter(|&i| near(i) % 3 == i % 3).count();
        assert!(same > 235, "{same}");
        assert!(drawn.points.iter().all(|(p, _)| p.iter().all(|v| (0.0..=1.0).contains(v))));
        let html = section(&drawn);
        assert!(html.contains("t-SNE") && html.contains("class 2") && html.matches("<circle").count() == 240);
        assert!(draw(|i| Some(format!("{i}"))).classes.is_empty(), "too many classes for colours");
    }

    #[test]
    fn few_or_equal_pictures_do_not_break_it() {
        let none = |_: usize| None;
        assert_eq!(section(&map(&Features::default(), |_| None, none)), "");
        let few = map(&clouds(9), |_| None, none);
        assert!(!few.tsne && few.points.len() == 9);
        let same = Features::new(2, vec![1.0; 400]).unwrap();
        let drawn = map(&same, |_| None, none);
        assert!(drawn.points.iter().all(|(p, _)| p.iter().all(|v| v.is_finite())));
    }
}
