//! One pass over a folder: every file looked at, every picture measured.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use fast_image_resize as fir;
use latentd_model::DecodeLimits;
use rayon::prelude::*;

use super::facts::{Facts, Refusal};
use crate::data::{DataError, Skipped, scan};

/// Pictures measured before progress is told.
const CHUNK: usize = 256;

/// How a folder is surveyed.
#[derive(Clone, Debug, Default)]
pub struct SurveyOptions {
    /// Pictures to look at, evenly spaced; all of them if `None`.
    pub limit: Option<usize>,
    /// What a file may hold.
    pub limits: DecodeLimits,
}

/// How far a survey has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SurveyProgress {
    /// Files dealt with.
    pub done: usize,
    /// Files in all.
    pub total: usize,
}

/// What a folder holds.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The folder.
    pub root: PathBuf,
    /// Picture files that were found.
    pub listed: usize,
    /// Readable pictures, sorted by name, relative to the folder.
    pub pictures: Vec<(PathBuf, Facts)>,
    /// Picture files that cannot be read, with the reason.
    pub refused: Vec<(PathBuf, Refusal)>,
    /// Files that are no pictures, or could not be looked at.
    pub others: Vec<Skipped>,
    /// Seconds on the clock.
    pub seconds: f64,
    /// Threads that decoded.
    pub threads: usize,
}

impl Survey {
    /// Scans and measures `root`. A folder without a readable picture is a survey too, as long as it holds picture files.
    ///
    /// # Errors
    /// When `root` is no folder or holds no picture file, or `progress` asked to stop.
    pub fn of(
        root: &Path,
        options: &SurveyOptions,
        progress: &mut dyn FnMut(SurveyProgress) -> ControlFlow<()>,
    ) -> Result<Self, DataError> {
        let started = Instant::now();
        let found = scan(root)?;
        let listed = found.pictures.len();
        let step = listed.div_ceil(options.limit.unwrap_or(listed).max(1)).max(1);
        let paths: Vec<PathBuf> = found.pictures.into_iter().step_by(step).collect();
        let mut survey = Self { root: root.to_owned(), listed, others: found.skipped, ..Self::default() };
        let total = paths.len();
        let mut done = 0;
        let mut paths = paths.into_iter();
        while done < total {
            let chunk: Vec<PathBuf> = paths.by_ref().take(CHUNK).collect();
            done += chunk.len();
            let measured: Vec<(PathBuf, Result<Facts, Refusal>)> = chunk
                .into_par_iter()
                .map_init(fir::Resizer::new, |resizer, path| {
                    let facts = Facts::of(&root.join(&path), &options.limits, resizer);
                    (path, facts)
                })
                .collect();
            for (path, outcome) in measured {
                match outcome {
                    Ok(facts) => survey.pictures.push((path, facts)),
                    Err(refusal) => survey.refused.push((path, refusal)),
                }
            }
            if progress(SurveyProgress { done, total }).is_break() {
                return Err(DataError::Cancelled);
            }
        }
        survey.seconds = started.elapsed().as_secs_f64();
        survey.threads = rayon::current_num_threads();
        Ok(survey)
    }

    /// Whether only some of the pictures were looked at.
    #[must_use]
    pub fn sampled(&self) -> bool {
        self.pictures.len() + self.refused.len() < self.listed
    }

    /// Share of the picture files that cannot be read.
    #[must_use]
    pub fn refused_share(&self) -> f64 {
        self.refused.len() as f64 / (self.pictures.len() + self.refused.len()).max(1) as f64
    }

    /// Quantiles of a measure over the pictures, ascending probabilities between 0 and 1; none without pictures.
    #[must_use]
    pub fn quantiles<const N: usize>(
        &self,
        probabilities: [f64; N],
        measure: impl Fn(&Facts) -> f64,
    ) -> Option<[f64; N]> {
        let mut values: Vec<f64> = self.pictures.iter().map(|(_, f)| measure(f)).collect();
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        Some(probabilities.map(|p| values[(p * last as f64).round() as usize]))
    }

    /// Seconds that reading and decoding every listed picture takes with the threads of this survey.
    #[must_use]
    pub fn decode_seconds(&self) -> f64 {
        let spent: f64 = self.pictures.iter().map(|(_, f)| f64::from(f.decode_us) / 1e6).sum();
        let scale = self.listed as f64 / (self.pictures.len() + self.refused.len()).max(1) as f64;
        spent * scale / self.threads.max(1) as f64
    }

    /// Bytes that all listed pictures take once shrunk to a shortest side of `edge`, as training keeps them.
    #[must_use]
    pub fn cache_bytes(&self, edge: u32) -> u64 {
        let one = |f: &Facts| {
            let scale = (f64::from(edge) / f64::from(f.shorter().max(1))).min(1.0);
            f64::from(f.height) * f64::from(f.width) * scale * scale * 3.0
        };
        let bytes: f64 = self.pictures.iter().map(|(_, f)| one(f)).sum();
        (bytes * self.listed as f64 / (self.pictures.len() + self.refused.len()).max(1) as f64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_quantiles_and_a_sample() {
        let dir = tempfile::tempdir().unwrap();
        for side in 10..30u32 {
            let picture = image::RgbImage::from_fn(side * 2, side, |x, y| image::Rgb([x as u8, y as u8, 0]));
            picture.save(dir.path().join(format!("{side}.png"))).unwrap();
        }
        std::fs::write(dir.path().join("x.jpg"), b"\xff\xd8\xff broken").unwrap();
        std::fs::write(dir.path().join("notes.txt"), b"hello").unwrap();
        let mut calls = Vec::new();
        let survey = Survey::of(dir.path(), &SurveyOptions::default(), &mut |p| {
            calls.push(p);
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!((survey.pictures.len(), survey.refused.len(), survey.others.len()), (20, 1, 1));
        assert_eq!(survey.quantiles([0.0, 0.5, 1.0], |f| f64::from(f.height)), Some([10.0, 20.0, 29.0]));
        assert_eq!(calls, [SurveyProgress { done: 21, total: 21 }]);
        assert!(!survey.sampled() && survey.decode_seconds() > 0.0);
        // 16 rows of 32 pixels for those above 16; the others as they are.
        let want: u32 = (10..30).map(|s: u32| s.min(16).pow(2) * 2 * 3).sum();
        assert!(survey.cache_bytes(16).abs_diff(u64::from(want)) < 10 + u64::from(want) / 10);
        let some = SurveyOptions { limit: Some(5), ..SurveyOptions::default() };
        let survey = Survey::of(dir.path(), &some, &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(survey.sampled() && survey.pictures.len() <= 5);
        let stopped = Survey::of(dir.path(), &some, &mut |_| ControlFlow::Break(()));
        assert!(matches!(stopped, Err(DataError::Cancelled)));
    }
}
