//! Which pictures are watched, how often, and what an encoder makes of their views.

use std::sync::Arc;

use rayon::prelude::*;

use super::health::{Health, ViewPairs};
use crate::augment::{Scratch, Views, render};
use crate::data::random::{Purpose, stream};
use crate::data::{PictureCache, spaced};
use crate::eval::EvalError;
use crate::nn::config::EncoderConfig;

/// Pictures that are watched, at most.
const MOST: usize = 512;
/// Share of the pictures that is held out of training.
const SHARE: usize = 20;
/// Below this many a verdict is too rough: then nothing is held out, and so many of all are watched.
const LEAST: usize = 64;
/// Share of a run's time that verdicts may take. A step passes a picture's two views through two networks and back
/// through one (as much as two passes), which makes eight passes; a verdict takes two.
const TIME_SHARE: f64 = 0.025;
/// Verdicts in an epoch, at most.
const MOST_PER_EPOCH: f64 = 8.0;

/// The pictures of a run that are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Which of the cache, evenly spaced.
    pub pictures: Vec<u32>,
    /// Whether they are kept out of training.
    pub held_out: bool,
}

impl Watched {
    /// Pictures to hold out of a new run: one in twenty, at most 512, and none where that leaves too few to look at or
    /// to train on.
    #[must_use]
    pub fn hold_out(pictures: usize, batch: usize) -> usize {
        let count = (pictures / SHARE).min(MOST);
        if count >= LEAST && pictures - count >= batch { count } else { 0 }
    }

    /// The watched pictures of a run that holds out so many.
    #[must_use]
    pub fn of(pictures: usize, held_out: usize) -> Self {
        let count = if held_out == 0 { pictures.min(LEAST) } else { held_out };
        Self { pictures: spaced(pictures, count), held_out: held_out > 0 }
    }

    /// Steps from one verdict to the next, so that verdicts take about a fortieth of the time: at most an epoch, but
    /// for folders of fewer than about 640 pictures, whose epochs are over in moments.
    #[must_use]
    pub fn interval(&self, trained: usize, steps_per_epoch: u64) -> u64 {
        let per_epoch =
            (TIME_SHARE * 4.0 * trained as f64 / self.pictures.len().max(1) as f64).min(MOST_PER_EPOCH);
        let steps = steps_per_epoch.max(1);
        if per_epoch >= 1.0 {
            (steps / per_epoch.floor() as u64).max(1)
        } else {
            steps * (1.0 / per_epoch.max(1e-3)).ceil() as u64
        }
    }
}

/// What looks at them.
pub struct Watcher {
    cache: Arc<PictureCache>,
    watched: Watched,
    views: Views,
    encoder: EncoderConfig,
    seed: u64,
    /// Rows that a pass takes: as many as a training step, so that it uses the same memory.
    rows: usize,
}

impl Watcher {
    /// For pictures of `cache`, in passes of `rows` views.
    #[must_use]
    pub fn new(
        cache: Arc<PictureCache>,
        watched: Watched,
        views: Views,
        encoder: &EncoderConfig,
        seed: u64,
        rows: usize,
    ) -> Self {
        Self { cache, watched, views, encoder: encoder.clone(), seed, rows: rows.max(2) }
    }

    /// Encodes two views of every picture and measures. `encode` gives representations and projections of exactly
    /// the rows that a pass takes, `[rows, size, size, 3]`.
    ///
    /// # Errors
    /// What `encode` says, and vectors that are no numbers.
    pub fn look<E: From<EvalError>>(
        &self,
        mut encode: impl FnMut(&[f32]) -> Result<(Vec<f32>, Vec<f32>), E>,
    ) -> Result<Health, E> {
        let picture = self.encoder.image_size * self.encoder.image_size * 3;
        let half = self.rows / 2;
        let mut views = vec![0f32; self.rows * picture];
        // Representations and projections of both views.
        let mut found: [[Vec<f32>; 2]; 2] = Default::default();
        for pictures in self.watched.pictures.chunks(half) {
            let (view1, view2) = views.split_at_mut(half * picture);
            self.render(pictures, view1, view2);
            let (representations, projections) = encode(&views)?;
            for (kind, rows) in [representations, projections].into_iter().enumerate() {
                let dim = rows.len() / self.rows;
                for (found, rows) in found[kind].iter_mut().zip(rows.chunks_exact(half * dim)) {
                    found.extend_from_slice(&rows[..pictures.len() * dim]);
                }
            }
        }
        let count = self.watched.pictures.len().max(1);
        let pairs = |[a, b]: [Vec<f32>; 2]| ViewPairs::new(a.len() / count, a, b);
        let [representations, projections] = found;
        Ok(Health::measure(&pairs(representations)?, &pairs(projections)?)?)
    }

    fn render(&self, pictures: &[u32], view1: &mut [f32], view2: &mut [f32]) {
        let EncoderConfig { image_size, mean, std, .. } = self.encoder;
        let len = image_size * image_size * 3;
        let one = view1.par_chunks_exact_mut(len).zip(view2.par_chunks_exact_mut(len));
        one.zip(pictures.par_iter()).for_each_init(Scratch::default, |scratch, ((out1, out2), &index)| {
            let picture = self.cache.get(index as usize);
            for (purpose, view, out) in
                [(Purpose::Watch1, &self.views.t1, out1), (Purpose::Watch2, &self.views.t2, out2)]
            {
                let mut rng = stream(self.seed, purpose, u64::from(index), 0);
                render(view, picture, image_size, mean, std, &mut rng, scratch, out);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use latentd_model::Pixels;

    use super::*;
    use crate::data::random::unit;
    use crate::nn::config::Arch;

    #[test]
    fn one_in_twenty_is_held_out_where_that_is_enough() {
        assert_eq!(Watched::hold_out(50_000, 128), 512);
        assert_eq!(Watched::hold_out(3068, 128), 153);
        assert_eq!(Watched::hold_out(1000, 128), 0);
        assert_eq!(Watched::hold_out(1300, 1290), 0, "enough must be left for a batch");
        let watched = Watched::of(3068, 153);
        assert!(watched.held_out && watched.pictures.len() == 153);
        let few = Watched::of(40, 0);
        assert!(!few.held_out && few.pictures.len() == 40);
    }

    #[test]
    fn verdicts_take_a_small_share_of_the_time() {
        for (pictures, batch) in
            [(50_000, 128), (5000, 128), (1300, 64), (700, 64), (100, 16), (1_281_167, 4096)]
        {
            let held = Watched::hold_out(pictures, batch);
            let watched = Watched::of(pictures, held);
            let trained = pictures - held;
            let steps = (trained / batch) as u64;
            let every = watched.interval(trained, steps);
            let verdicts = steps as f64 / every as f64;
            let share = verdicts * 2.0 * watched.pictures.len() as f64 / (8.0 * trained as f64);
            assert!(share < 0.03, "{pictures}: {share}");
            assert!(pictures < 640 || every <= steps, "{pictures}: at least one an epoch");
        }
    }

    #[test]
    fn it_sees_the_same_views_however_they_are_cut_into_passes() {
        let mut rng = stream(4, Purpose::Split, 0, 0);
        let picture = |_| {
            let bytes = (0..12 * 10 * 3).map(|_| (unit(&mut rng) * 256.0) as u8).collect();
            Pixels::new(12, 10, bytes).unwrap()
        };
        let cache = Arc::new(PictureCache::from_pictures((0..23).map(picture)).unwrap());
        let encoder = EncoderConfig::new(Arch::Resnet18, 0.125, 8);
        let look = |rows: usize| {
            let watched = Watched::of(23, 0);
            let watcher = Watcher::new(cache.clone(), watched, Views::byol(), &encoder, 1, rows);
            // The pixels themselves as representations.
            watcher
                .look(|views| {
                    assert_eq!(views.len(), rows.max(2) * 192);
                    Ok::<_, EvalError>((views.to_vec(), views.to_vec()))
                })
                .unwrap()
        };
        assert_eq!(look(4), look(46));
        assert_eq!(look(4), look(64));
        assert!(look(4).alignment > 0.0, "two views differ");
    }
}
