//! What two encoders make of the same pictures, without labels.

use latentd_model::{Embedding, Filter, Pixels, Preprocess};
use rayon::prelude::*;

use crate::augment::{Scratch, Views, render};
use crate::data::PictureCache;
use crate::data::random::{Purpose, stream};
use crate::eval::{EvalError, Features, neighbours, spread};

/// Embeds pictures of an encoder's size.
pub type Embed<'a> = &'a mut dyn FnMut(&[Pixels]) -> Result<Vec<Embedding>, EvalError>;

/// Neighbours that are compared.
const NEIGHBOURS: usize = 10;

/// Two views of each of some pictures, as pixels, the same for every encoder.
pub struct ViewsOf {
    view1: Vec<Pixels>,
    view2: Vec<Pixels>,
}

/// An encoder's figures on such views.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelFree {
    /// For each picture 1 where the view nearest to its first view is its second, else 0.
    pub retrieved: Vec<f32>,
    /// Mean squared distance of the two views of a picture.
    pub alignment: f64,
    /// Spread of the vectors, see `eval::Spread`.
    pub std: f64,
    /// Dimensions in use, see `eval::Spread`.
    pub effective_rank: f64,
}

impl ViewsOf {
    /// Renders views of `size` pixels of all pictures of a cache; equal arguments give equal views.
    #[must_use]
    pub fn render(cache: &PictureCache, views: &Views, size: usize, seed: u64) -> Self {
        let one = |purpose, config| {
            (0..cache.len())
                .into_par_iter()
                .map_init(Scratch::default, |scratch, i| {
                    let mut out = vec![0f32; size * size * 3];
                    let mut rng = stream(seed, purpose, i as u64, 1);
                    render(config, cache.get(i), size, [0.0; 3], [1.0; 3], &mut rng, scratch, &mut out);
                    let bytes = out.iter().map(|v| (v * 255.0).round().clamp(0.0, 255.0) as u8).collect();
                    Pixels::new(size as u32, size as u32, bytes).ok()
                })
                .flatten()
                .collect()
        };
        Self { view1: one(Purpose::Watch1, &views.t1), view2: one(Purpose::Watch2, &views.t2) }
    }

    /// The figures of an encoder that takes pictures of `preprocess`'s size.
    ///
    /// # Errors
    /// What `embed` says, or too few pictures.
    pub fn measure(&self, preprocess: &Preprocess, embed: Embed<'_>) -> Result<LabelFree, EvalError> {
        let mut of = |views: &[Pixels]| {
            let squash = Preprocess::squash(preprocess.height, preprocess.width, Filter::Bicubic);
            let sized: Result<Vec<Pixels>, _> = views.iter().map(|v| squash.apply(v)).collect();
            let sized = sized.map_err(|e| EvalError::Shape(e.to_string()))?;
            Features::from_embeddings(&embed(&sized)?)
        };
        let (view1, view2) = (of(&self.view1)?, of(&self.view2)?);
        let nearest = neighbours(&view2, &view1, 1)?;
        let own = |(i, found): (usize, &Vec<crate::eval::Neighbour>)| {
            f32::from(u8::from(found.first().is_some_and(|n| n.index as usize == i)))
        };
        let distance =
            |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
        let alignment =
            view1.iter().zip(view2.iter()).map(distance).sum::<f64>() / view1.rows().max(1) as f64;
        let s = spread(&view1, usize::MAX)?;
        Ok(LabelFree {
            retrieved: nearest.iter().enumerate().map(own).collect(),
            alignment,
            std: s.std,
            effective_rank: s.effective_rank,
        })
    }
}

impl LabelFree {
    /// Share of pictures whose views find each other.
    #[must_use]
    pub fn retrieval(&self) -> f64 {
        self.retrieved.iter().map(|r| f64::from(*r)).sum::<f64>() / self.retrieved.len().max(1) as f64
    }
}

/// Mean share of the 10 nearest other pictures that two encoders both name.
///
/// # Errors
/// When the numbers of pictures differ, or there are none.
pub fn overlap(a: &Features, b: &Features) -> Result<f64, EvalError> {
    if a.rows() != b.rows() || a.rows() < 2 {
        return Err(EvalError::Shape("neighbours are compared of the same pictures, two or more".to_owned()));
    }
    let k = NEIGHBOURS.min(a.rows() - 1);
    let others = |f: &Features| -> Result<Vec<Vec<u32>>, EvalError> {
        let found = neighbours(f, f, k + 1)?.into_iter().enumerate();
        Ok(found
            .map(|(i, n)| n.iter().map(|n| n.index).filter(|j| *j as usize != i).take(k).collect())
            .collect())
    };
    let (a, b) = (others(a)?, others(b)?);
    let common = a.iter().zip(&b).map(|(a, b)| a.iter().filter(|i| b.contains(i)).count()).sum::<usize>();
    Ok(common as f64 / (a.len() * k) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> PictureCache {
        let picture = |i: u32| {
            let pixel = |p: u32| [(p * (i + 3) * 7) as u8, (i * 37) as u8, (p * 5 + i * 11) as u8];
            Pixels::new(24, 24, (0..576).flat_map(pixel).collect()).unwrap()
        };
        PictureCache::from_pictures((0..30).map(picture)).unwrap()
    }

    fn embed(dull: bool) -> impl FnMut(&[Pixels]) -> Result<Vec<Embedding>, EvalError> {
        move |pictures| {
            let one = |p: &Pixels| {
                let mut v = vec![1.0, 1.0, 1.0];
                let share = if dull { 1e-6 } else { 1.0 };
                p.as_bytes().iter().enumerate().for_each(|(i, b)| v[i % 3] += share * f32::from(*b));
                Embedding::from_unnormalised(v).unwrap()
            };
            Ok(pictures.iter().map(one).collect())
        }
    }

    #[test]
    fn colours_find_their_views_and_a_constant_does_not() {
        let views = ViewsOf::render(&cache(), &Views::small(), 16, 3);
        let size = Preprocess::squash(16, 16, Filter::Bicubic);
        let good = views.measure(&size, &mut embed(false)).unwrap();
        let dull = views.measure(&size, &mut embed(true)).unwrap();
        assert_eq!(good.retrieved.len(), 30);
        assert!(good.std > dull.std && dull.std < 0.01, "{} {}", good.std, dull.std);
        assert!(good.retrieval() > 1.0 / 30.0 && good.alignment > dull.alignment);
        // Another size is squeezed to.
        views.measure(&Preprocess::squash(8, 8, Filter::Bicubic), &mut embed(false)).unwrap();
    }

    #[test]
    fn overlap_of_the_same_is_one() {
        let data: Vec<f32> = (0..40).flat_map(|i| [(i as f32).sin(), (i as f32).cos(), 0.2]).collect();
        let a = Features::new(3, data.clone()).unwrap();
        assert_eq!(overlap(&a, &a).unwrap(), 1.0);
        let other: Vec<f32> =
            (0..40).flat_map(|i| [(i as f32 * 7.0).sin(), 0.3, (i as f32 * 3.0).cos()]).collect();
        let chance = overlap(&a, &Features::new(3, other).unwrap()).unwrap();
        assert!(chance < 0.6, "{chance}");
        assert!(overlap(&a, &a.select(&[0, 1, 2])).is_err());
    }
}
