//! Labelled pictures read once and turned into everybody's features.

use std::path::Path;

use fast_image_resize as fir;
use latentd_model::{Pixels, Preprocess, decode};
use rayon::prelude::*;

use super::error::EvalError;
use super::evaluate::EvalOptions;
use super::features::Features;
use super::hog::hog;
use super::subject::Subject;
use crate::data::{DataError, Labelled, read_bounded};

/// Pictures decoded at a time.
const CHUNK: usize = 256;
/// Side of the pictures in the raw-pixel baseline.
const PIXEL_SIDE: u32 = 32;
/// Sides of the pictures that HOG is taken of, as its published baselines do: small for small pictures.
const HOG_SIDES: [u32; 2] = [32, 64];
/// Pictures that decide which.
const HOG_LOOKED_AT: usize = 33;

/// One part of the folder, seen by everybody.
pub(super) struct Collected {
    pub(super) labels: Vec<usize>,
    pub(super) features: Vec<Features>,
    pub(super) pixels: Features,
    pub(super) hog: Features,
    pub(super) skipped: usize,
}

/// Who sees what.
pub(super) struct Views<'a> {
    options: &'a EvalOptions,
    /// The different ways of preprocessing.
    ways: Vec<Preprocess>,
    /// Which of them each subject wants.
    way_of: Vec<usize>,
    /// Side of the pictures for HOG.
    hog_side: Option<u32>,
}

impl<'a> Views<'a> {
    /// Subjects without a preprocessing of their own get `preprocess`.
    pub(super) fn new(
        subjects: &[Subject<'_>],
        preprocess: &Preprocess,
        options: &'a EvalOptions,
        train: &Labelled,
    ) -> Self {
        let mut ways: Vec<Preprocess> = Vec::new();
        let mut place = |wanted: &Preprocess| {
            ways.iter().position(|w| w == wanted).unwrap_or_else(|| {
                ways.push(wanted.clone());
                ways.len() - 1
            })
        };
        let way_of = subjects.iter().map(|s| place(s.preprocess.as_ref().unwrap_or(preprocess))).collect();
        let hog_side = options.hog.then(|| hog_side(train, options));
        Self { options, ways, way_of, hog_side }
    }

    /// The side of HOG's pictures, if it is wanted.
    pub(super) fn hog_side(&self) -> Option<u32> {
        self.hog_side
    }
}

/// 32 where half of the pictures are smaller than 64 pixels, else 64.
fn hog_side(train: &Labelled, options: &EvalOptions) -> u32 {
    let step = train.pictures.len().div_ceil(HOG_LOOKED_AT).max(1);
    let side = |(path, _): &(std::path::PathBuf, usize)| {
        let bytes = read_bounded(&train.root.join(path), options.limits.max_bytes).ok()?;
        let picture = decode(&bytes, &options.limits).ok()?;
        Some(picture.height().min(picture.width()))
    };
    let mut sides: Vec<u32> = train.pictures.iter().step_by(step).filter_map(side).collect();
    sides.sort_unstable();
    let [small, large] = HOG_SIDES;
    if sides.get(sides.len() / 2).is_some_and(|s| *s < large) { small } else { large }
}

/// A picture as the subjects and the hand-made baselines see it.
struct Seen {
    pictures: Vec<Pixels>,
    pixels: Option<Vec<f32>>,
    hog: Option<Vec<f32>>,
}

pub(super) fn collect(
    part: &Labelled,
    subjects: &mut [Subject<'_>],
    views: &Views<'_>,
    progress: &mut dyn FnMut(usize) -> Result<(), EvalError>,
) -> Result<Collected, EvalError> {
    let mut collected = Collected {
        labels: Vec::with_capacity(part.pictures.len()),
        features: subjects.iter().map(|_| Features::default()).collect(),
        pixels: Features::default(),
        hog: Features::default(),
        skipped: 0,
    };
    let mut done = 0;
    for chunk in part.pictures.chunks(CHUNK) {
        let seen: Vec<Option<Seen>> =
            chunk.par_iter().map(|(path, _)| see(&part.root.join(path), views)).collect();
        let mut pictures: Vec<Vec<Pixels>> = views.ways.iter().map(|_| Vec::new()).collect();
        for (seen, (_, label)) in seen.into_iter().zip(chunk) {
            let Some(seen) = seen else {
                collected.skipped += 1;
                continue;
            };
            collected.labels.push(*label);
            pictures.iter_mut().zip(seen.pictures).for_each(|(all, one)| all.push(one));
            if let Some(row) = seen.pixels {
                collected.pixels.push(&row)?;
            }
            if let Some(row) = seen.hog {
                collected.hog.push(&row)?;
            }
        }
        for ((subject, features), way) in subjects.iter_mut().zip(&mut collected.features).zip(&views.way_of)
        {
            if !pictures[*way].is_empty() {
                for embedding in subject.embed(&pictures[*way])? {
                    features.push(embedding.as_slice())?;
                }
            }
        }
        done += chunk.len();
        progress(done)?;
    }
    if collected.labels.is_empty() {
        return Err(DataError::NoPictures { root: part.root.clone(), skipped: collected.skipped }.into());
    }
    Ok(collected)
}

/// `None` when the file cannot be read or brought to size.
fn see(path: &Path, views: &Views<'_>) -> Option<Seen> {
    let limits = &views.options.limits;
    let bytes = read_bounded(path, limits.max_bytes).ok()?;
    let pictures: Option<Vec<Pixels>> = views.ways.iter().map(|way| way.load(&bytes, limits).ok()).collect();
    // The baselines see whole pictures, whatever the encoders are content with.
    let baselines = views.options.pixels || views.hog_side.is_some();
    let original = if baselines { decode(&bytes, limits).ok() } else { None };
    let pixels = if views.options.pixels {
        let small = squeezed(original.as_ref()?, PIXEL_SIDE)?;
        Some(small.into_iter().map(|v| f32::from(v) / 255.0).collect())
    } else {
        None
    };
    let hog = match views.hog_side {
        Some(side) => Some(hog(&squeezed(original.as_ref()?, side)?, side as usize)),
        None => None,
    };
    Some(Seen { pictures: pictures?, pixels, hog })
}

/// The picture squeezed to a square by a box filter.
fn squeezed(picture: &Pixels, side: u32) -> Option<Vec<u8>> {
    let (height, width) = (picture.height(), picture.width());
    if (height, width) == (side, side) {
        return Some(picture.as_bytes().to_vec());
    }
    let source = fir::images::ImageRef::new(width, height, picture.as_bytes(), fir::PixelType::U8x3).ok()?;
    let mut target = fir::images::Image::new(side, side, fir::PixelType::U8x3);
    let options = fir::ResizeOptions::new()
        .resize_alg(fir::ResizeAlg::Convolution(fir::FilterType::Box))
        .use_alpha(false);
    fir::Resizer::new().resize(&source, &mut target, &options).ok()?;
    Some(target.into_vec())
}
