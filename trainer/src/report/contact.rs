//! The pictures of a report: queries with their neighbours, and pictures with their two views.

use super::thumbnail::{encode_picture, encode_view};
use crate::augment::{Scratch, Views, render};
use crate::data::random::{Purpose, permutation, stream};
use crate::data::{PictureCache, PictureRef};
use crate::eval::{EvalError, Features, neighbours};

/// An encoded picture with a caption.
#[derive(Clone, Debug, PartialEq)]
pub struct Thumbnail {
    /// PNG or JPEG.
    pub picture: Vec<u8>,
    /// Text below it: a class, a file's name; may be empty.
    pub caption: String,
    /// Cosine to the query; `None` for the query itself.
    pub similarity: Option<f32>,
    /// Whether it is of the query's class, where classes are known.
    pub same_class: Option<bool>,
}

/// A query and its nearest neighbours, nearest first.
#[derive(Clone, Debug, PartialEq)]
pub struct ContactRow {
    /// The picture asked about.
    pub query: Thumbnail,
    /// What was found.
    pub neighbours: Vec<Thumbnail>,
}

/// A picture and what the training sees of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewExample {
    /// PNG or JPEG.
    pub original: Vec<u8>,
    /// A view from T.
    pub view1: Vec<u8>,
    /// A view from T′.
    pub view2: Vec<u8>,
}

/// Rows for `count` pictures chosen by `seed`, each with its `k` nearest among all others.
///
/// `picture` gives picture `i` of the `features`, `class` its class where known (it becomes the caption).
///
/// # Errors
/// When the search fails.
pub fn contact_rows<'p>(
    features: &Features,
    count: usize,
    k: usize,
    seed: u64,
    picture: impl Fn(usize) -> Option<PictureRef<'p>>,
    class: impl Fn(usize) -> Option<String>,
) -> Result<Vec<ContactRow>, EvalError> {
    if features.rows() == 0 || count == 0 {
        return Ok(Vec::new());
    }
    let mut order = Vec::new();
    permutation(&mut stream(seed, Purpose::Split, 2, 0), features.rows(), &mut order);
    let queries: Vec<usize> = order.into_iter().take(count).map(|i| i as usize).collect();
    let found = neighbours(features, &features.select(&queries), k + 1)?;
    let mut rows = Vec::with_capacity(queries.len());
    for (&query, found) in queries.iter().zip(found) {
        let own = class(query);
        let thumbnail = |index: usize, similarity: Option<f32>| {
            let class = class(index);
            let same_class = similarity.and(own.as_ref()).zip(class.as_ref()).map(|(a, b)| a == b);
            let picture = encode_picture(picture(index)?)?;
            Some(Thumbnail { picture, caption: class.unwrap_or_default(), similarity, same_class })
        };
        let others = found.iter().filter(|n| n.index as usize != query).take(k);
        let neighbours = others.filter_map(|n| thumbnail(n.index as usize, Some(n.similarity))).collect();
        rows.extend(thumbnail(query, None).map(|query| ContactRow { query, neighbours }));
    }
    Ok(rows)
}

/// `count` evenly spaced pictures with one pair of views each.
#[must_use]
pub fn view_examples(
    cache: &PictureCache,
    views: &Views,
    size: usize,
    mean: [f32; 3],
    std: [f32; 3],
    seed: u64,
    count: usize,
) -> Vec<ViewExample> {
    let mut scratch = Scratch::default();
    let mut out = vec![0.0; size * size * 3];
    let count = count.min(cache.len());
    let mut examples = Vec::with_capacity(count);
    for i in 0..count {
        let index = i * cache.len() / count;
        let picture = cache.get(index);
        let mut view = |config, purpose| {
            let mut rng = stream(seed, purpose, index as u64, u64::MAX);
            render(config, picture, size, mean, std, &mut rng, &mut scratch, &mut out);
            encode_view(&out, size, mean, std)
        };
        let pair = (view(&views.t1, Purpose::View1), view(&views.t2, Purpose::View2));
        if let (Some(original), (Some(view1), Some(view2))) = (encode_picture(picture), pair) {
            examples.push(ViewExample { original, view1, view2 });
        }
    }
    examples
}

#[cfg(test)]
mod tests {
    use super::*;
    use latentd_model::Pixels;

    fn cache() -> PictureCache {
        let picture = |i: u8| Pixels::new(4, 4, vec![i * 20; 48]).unwrap();
        PictureCache::from_pictures((0..10).map(picture)).unwrap()
    }

    #[test]
    fn rows_leave_the_query_out_and_mark_classes() {
        let cache = cache();
        let angle = |i: usize| (i as f32 * 0.1).sin_cos();
        let data = (0..10).flat_map(|i| [angle(i).0, angle(i).1]).collect();
        let features = Features::new(2, data).unwrap();
        let class = |i: usize| Some(if i < 5 { "low" } else { "high" }.to_owned());
        let rows = contact_rows(&features, 10, 3, 7, |i| Some(cache.get(i)), class).unwrap();
        assert_eq!(rows.len(), 10);
        for row in &rows {
            assert_eq!(row.neighbours.len(), 3);
            assert!(row.neighbours.iter().all(|n| n.picture != row.query.picture));
            assert_eq!((row.query.similarity, row.query.same_class), (None, None));
            let first = &row.neighbours[0];
            assert!(first.similarity.unwrap() > 0.99);
            assert_eq!(first.same_class, Some(first.caption == row.query.caption));
        }
        let unknown = contact_rows(&features, 2, 3, 7, |i| Some(cache.get(i)), |_| None).unwrap();
        assert_eq!(unknown[0].neighbours[0].same_class, None);
        assert!(contact_rows(&Features::default(), 2, 3, 7, |_| None, |_| None).unwrap().is_empty());
    }

    #[test]
    fn examples_hold_both_views() {
        let examples = view_examples(&cache(), &Views::byol(), 8, [0.5; 3], [0.2; 3], 1, 4);
        assert_eq!(examples.len(), 4);
        for e in examples {
            assert_eq!(image::load_from_memory(&e.view2).unwrap().width(), 8);
        }
        assert_eq!(view_examples(&cache(), &Views::byol(), 8, [0.5; 3], [0.2; 3], 1, 99).len(), 10);
    }
}
