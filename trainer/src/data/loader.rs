//! Batches of two views, rendered ahead of the training step by threads of their own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::cache::{PictureCache, pool};
use super::error::DataError;
use super::held_out::shown;
use super::random::{Purpose, permutation, stream};
use crate::augment::{Scratch, ViewConfig, Views, render};

/// What a loader renders.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// Height and width of a view.
    pub image_size: usize,
    /// Pictures in a batch.
    pub batch: usize,
    /// Pictures that are never shown: so many, evenly spaced, see [`spaced`](super::spaced).
    pub held_out: usize,
    /// Everything random follows from it.
    pub seed: u64,
    /// Passes over the pictures; a last batch that is not full is dropped in each.
    pub epochs: usize,
    /// Threads that render; 0 takes what the machine offers.
    pub threads: usize,
    /// Finished batches that may wait, at least 1; one more is in the making.
    pub ahead: usize,
    /// First step to render, for a run that is resumed.
    pub start_step: u64,
    /// Subtracted from each channel (pictures are in [0, 1]).
    pub mean: [f32; 3],
    /// Each channel is divided by it.
    pub std: [f32; 3],
}

/// One batch; what it holds follows from the seed and its step alone.
#[derive(Debug)]
pub struct Batch {
    /// Steps are counted from 0 over all epochs.
    pub step: u64,
    /// Epoch of the step, from 0.
    pub epoch: u64,
    /// First views, `[batch, image_size, image_size, 3]`, normalised.
    pub view1: Vec<f32>,
    /// Second views of the same pictures.
    pub view2: Vec<f32>,
    /// Which pictures of the cache.
    pub indices: Vec<u32>,
}

/// Renders batches in the order of their steps; dropping it stops its threads.
#[derive(Debug)]
pub struct Loader {
    batches: Option<Receiver<Result<Batch, DataError>>>,
    spare: Sender<Batch>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    steps_per_epoch: u64,
    total_steps: u64,
    waited: Duration,
}

impl Loader {
    /// Starts rendering.
    ///
    /// # Errors
    /// Settings out of range, and fewer pictures than a batch.
    pub fn new(cache: Arc<PictureCache>, views: Views, config: LoaderConfig) -> Result<Self, DataError> {
        check(&cache, &views, &config)?;
        let shown = shown(cache.len(), config.held_out);
        let steps_per_epoch = (shown.len() / config.batch) as u64;
        let total_steps = steps_per_epoch * config.epochs as u64;
        let pool = pool(config.threads)?;
        let (send, batches) = sync_channel(config.ahead);
        let (spare, spares) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let scratches = (0..pool.current_num_threads()).map(|_| Mutex::default()).collect();
        let renderer = Renderer {
            cache,
            views,
            config,
            shown,
            stop: Arc::clone(&stop),
            scratches,
            order: Vec::new(),
            order_epoch: None,
        };
        let thread = std::thread::Builder::new()
            .name("views".to_owned())
            .spawn(move || pool.install(move || renderer.run(steps_per_epoch, total_steps, send, spares)))
            .map_err(|e| DataError::io("starting the thread that renders views", e))?;
        Ok(Self {
            batches: Some(batches),
            spare,
            stop,
            thread: Some(thread),
            steps_per_epoch,
            total_steps,
            waited: Duration::ZERO,
        })
    }

    /// The next batch, or `None` after the last epoch.
    ///
    /// # Errors
    /// When a renderer failed; the loader is then at its end.
    pub fn next_batch(&mut self) -> Result<Option<Batch>, DataError> {
        let started = Instant::now();
        let received = self.batches.as_ref().and_then(|b| b.recv().ok());
        self.waited += started.elapsed();
        match received {
            Some(Ok(batch)) => Ok(Some(batch)),
            Some(Err(error)) => {
                self.batches = None;
                Err(error)
            }
            None => Ok(None),
        }
    }

    /// Gives a batch's buffers back to be filled again.
    pub fn recycle(&self, batch: Batch) {
        // A loader at its end needs no buffers.
        let _ = self.spare.send(batch);
    }

    /// Batches in an epoch.
    #[must_use]
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// Batches in all epochs.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Time that [`next_batch`](Self::next_batch) has spent waiting: near zero when rendering keeps up.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Without a receiver a send returns at once.
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // It catches panics itself and has nothing more to say.
            let _ = thread.join();
        }
    }
}

fn check(cache: &PictureCache, views: &Views, config: &LoaderConfig) -> Result<(), DataError> {
    let setting = |text: &str| Err(DataError::Setting(text.to_owned()));
    if config.batch == 0 || config.image_size == 0 || config.ahead == 0 {
        return setting("batch, image_size and ahead must be at least 1");
    }
    if config.std.iter().any(|s| !(s.is_finite() && *s > 0.0)) || config.mean.iter().any(|m| !m.is_finite()) {
        return setting("mean and std must be finite, and std positive");
    }
    views.validate().map_err(DataError::Setting)?;
    let pictures = cache.len().saturating_sub(config.held_out);
    if pictures < config.batch {
        return Err(DataError::TooFewPictures { pictures, batch: config.batch });
    }
    Ok(())
}

/// What the rendering thread owns.
struct Renderer {
    cache: Arc<PictureCache>,
    views: Views,
    config: LoaderConfig,
    /// Pictures to choose from.
    shown: Vec<u32>,
    stop: Arc<AtomicBool>,
    scratches: Vec<Mutex<Scratch>>,
    order: Vec<u32>,
    order_epoch: Option<u64>,
}

impl Renderer {
    /// Renders from the first step to the last, as far ahead as the channel lets it.
    fn run(
        mut self,
        steps_per_epoch: u64,
        total_steps: u64,
        send: SyncSender<Result<Batch, DataError>>,
        spares: Receiver<Batch>,
    ) {
        for step in self.config.start_step..total_steps {
            let spare = spares.try_recv().ok();
            let rendered = catch_unwind(AssertUnwindSafe(|| self.batch(step, steps_per_epoch, spare)));
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let result = rendered.map_err(|panic| DataError::Worker(panic_text(panic.as_ref())));
            let failed = result.is_err();
            if send.send(result).is_err() || failed {
                return;
            }
        }
    }

    fn batch(&mut self, step: u64, steps_per_epoch: u64, spare: Option<Batch>) -> Batch {
        let (epoch, within) = (step / steps_per_epoch, (step % steps_per_epoch) as usize);
        if self.order_epoch != Some(epoch) {
            let mut rng = stream(self.config.seed, Purpose::Order, epoch, 0);
            permutation(&mut rng, self.shown.len(), &mut self.order);
            self.order.iter_mut().for_each(|i| *i = self.shown[*i as usize]);
            self.order_epoch = Some(epoch);
        }
        let LoaderConfig { batch, image_size, .. } = self.config;
        let view_len = image_size * image_size * 3;
        let (mut view1, mut view2, mut indices) =
            spare.map_or_else(Default::default, |b| (b.view1, b.view2, b.indices));
        indices.clear();
        indices.extend_from_slice(&self.order[within * batch..(within + 1) * batch]);
        view1.resize(batch * view_len, 0.0);
        view2.resize(batch * view_len, 0.0);
        let one = view1.par_chunks_exact_mut(view_len).zip(view2.par_chunks_exact_mut(view_len));
        one.zip(indices.par_iter()).enumerate().for_each(|(slot, ((out1, out2), &index))| {
            if !self.stop.load(Ordering::Relaxed) {
                self.view(Purpose::View1, &self.views.t1, step, slot, index, out1);
                self.view(Purpose::View2, &self.views.t2, step, slot, index, out2);
            }
        });
        Batch { step, epoch, view1, view2, indices }
    }

    fn view(&self, purpose: Purpose, view: &ViewConfig, step: u64, slot: usize, index: u32, out: &mut [f32]) {
        let LoaderConfig { image_size, seed, mean, std, .. } = self.config;
        let mut rng = stream(seed, purpose, step, slot as u64);
        let picture = self.cache.get(index as usize);
        let thread = rayon::current_thread_index().unwrap_or(0) % self.scratches.len();
        // Each thread has its own, so this never waits; what a panic left behind is only buffers.
        let mut scratch = self.scratches[thread].lock().unwrap_or_else(PoisonError::into_inner);
        render(view, picture, image_size, mean, std, &mut rng, &mut scratch, out);
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "unknown panic".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::unit;
    use latentd_model::Pixels;

    fn cache(count: usize) -> Arc<PictureCache> {
        let mut rng = stream(4, Purpose::Split, 0, 0);
        let picture = |_| {
            let bytes = (0..12 * 10 * 3).map(|_| (unit(&mut rng) * 256.0) as u8).collect();
            Pixels::new(12, 10, bytes).unwrap()
        };
        Arc::new(PictureCache::from_pictures((0..count).map(picture)).unwrap())
    }

    fn config() -> LoaderConfig {
        LoaderConfig {
            image_size: 8,
            batch: 4,
            held_out: 0,
            seed: 1,
            epochs: 2,
            threads: 2,
            ahead: 2,
            start_step: 0,
            mean: [0.5; 3],
            std: [0.25; 3],
        }
    }

    /// Step, epoch, indices and both views.
    type Seen = (u64, u64, Vec<u32>, Vec<f32>, Vec<f32>);

    fn all(config: LoaderConfig) -> Vec<Seen> {
        let mut loader = Loader::new(cache(11), Views::byol(), config).unwrap();
        let mut batches = Vec::new();
        while let Some(b) = loader.next_batch().unwrap() {
            batches.push((b.step, b.epoch, b.indices.clone(), b.view1.clone(), b.view2.clone()));
            loader.recycle(b);
        }
        batches
    }

    #[test]
    fn batches_depend_on_seed_and_step_alone() {
        let one = all(LoaderConfig { threads: 1, ahead: 1, ..config() });
        assert_eq!(one.iter().map(|b| (b.0, b.1)).collect::<Vec<_>>(), [(0, 0), (1, 0), (2, 1), (3, 1)]);
        assert_eq!(one, all(LoaderConfig { threads: 3, ahead: 3, ..config() }));
        assert_eq!(one[2..], all(LoaderConfig { start_step: 2, ..config() }));
        assert_eq!(one[3..], all(LoaderConfig { start_step: 3, ..config() }));
        assert_ne!(one, all(LoaderConfig { seed: 2, ..config() }));
        assert!(all(LoaderConfig { start_step: 4, ..config() }).is_empty());
    }

    #[test]
    fn an_epoch_shows_no_picture_twice_and_the_next_another_order() {
        let batches = all(config());
        let epoch =
            |e: u64| -> Vec<u32> { batches.iter().filter(|b| b.1 == e).flat_map(|b| b.2.clone()).collect() };
        let mut seen = epoch(0);
        assert_ne!(seen, epoch(1));
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 8);
        assert_ne!(batches[0].3, batches[0].4, "the two views differ");
    }

    #[test]
    fn what_is_held_out_is_never_shown() {
        let batches = all(LoaderConfig { held_out: 2, epochs: 20, ..config() });
        let mut seen: Vec<u32> = batches.iter().flat_map(|b| b.2.clone()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [0, 1, 3, 4, 5, 6, 7, 9, 10]);
    }

    #[test]
    fn dropping_early_stops_and_recycled_buffers_are_reused() {
        let mut loader =
            Loader::new(cache(64), Views::byol(), LoaderConfig { epochs: 1_000_000, ..config() }).unwrap();
        let batch = loader.next_batch().unwrap().unwrap();
        let address = batch.view1.as_ptr();
        loader.recycle(batch);
        let mut reused = false;
        for _ in 0..20 {
            let batch = loader.next_batch().unwrap().unwrap();
            reused |= batch.view1.as_ptr() == address;
            loader.recycle(batch);
        }
        assert!(reused);
        let started = Instant::now();
        drop(loader);
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_panic_is_an_error_and_then_the_end() {
        let cache = cache(8);
        let stop = Arc::new(AtomicBool::new(false));
        let (send, batches) = sync_channel(1);
        let (spare, spares) = channel();
        // No scratch buffers: the first view divides by zero.
        let renderer = Renderer {
            cache,
            views: Views::byol(),
            config: config(),
            shown: (0..8).collect(),
            stop: Arc::clone(&stop),
            scratches: Vec::new(),
            order: Vec::new(),
            order_epoch: None,
        };
        let thread = std::thread::spawn(move || renderer.run(2, 4, send, spares));
        let mut loader = Loader {
            batches: Some(batches),
            spare,
            stop,
            thread: Some(thread),
            steps_per_epoch: 2,
            total_steps: 4,
            waited: Duration::ZERO,
        };
        assert!(matches!(loader.next_batch(), Err(DataError::Worker(_))));
        assert!(loader.next_batch().unwrap().is_none());
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let error = |config| Loader::new(cache(8), Views::byol(), config).unwrap_err().to_string();
        assert!(
            error(LoaderConfig { batch: 9, ..config() }).contains("8 pictures are fewer than one batch of 9")
        );
        assert!(error(LoaderConfig { batch: 0, ..config() }).contains("at least 1"));
        assert!(error(LoaderConfig { std: [0.0; 3], ..config() }).contains("std"));
        let mut views = Views::byol();
        views.t2.hue = 2.0;
        assert!(Loader::new(cache(8), views, config()).unwrap_err().to_string().contains("views.t2.hue"));
    }
}
