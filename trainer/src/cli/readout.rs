//! The options of an encoder's readout, and how it is fitted to a run.

use std::path::PathBuf;

use anyhow::Context;
use latentd_model::Artefact;

use super::pictures::sample;
use super::subject::{TrainedRun, trained_shape};
use crate::nn::config::EncoderConfig;
use crate::readout::Readout;
use crate::whiten::{WhitenError, Whitening};

/// Pictures that a whitening is measured on, at most.
const WHITEN_PICTURES: usize = 20_000;

/// How embeddings come out of a trained encoder.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ReadoutOptions {
    /// Averages the last map in N × N cells rather than as a whole: for pictures that show one thing, framed alike.
    #[arg(long, value_name = "N")]
    grid: Option<usize>,
    /// Dimensions to keep, those along which the pictures vary most. By default all of the trained network's own, and
    /// as many of a grid's.
    #[arg(long, value_name = "N", conflicts_with = "no_whiten")]
    dims: Option<usize>,
    /// Leaves the representation as it is, without whitening.
    #[arg(long)]
    no_whiten: bool,
    /// Pictures to measure the whitening on; by default those trained on.
    #[arg(long, conflicts_with = "no_whiten")]
    whiten_on: Option<PathBuf>,
}

impl ReadoutOptions {
    /// Those that an artefact was exported with.
    pub fn of(artefact: &Artefact) -> Self {
        let Some(shape) = trained_shape(artefact) else { return Self::default() };
        let manifest = artefact.manifest();
        // What does not say is from before it was noted: nearly all were whitened.
        let no_whiten = manifest.training.as_ref().and_then(|training| training.whitened) == Some(false);
        let dims = Some(manifest.output.dim).filter(|&dims| !no_whiten && dims < shape.dim());
        Self { grid: Some(shape.grid), dims, no_whiten, ..Self::default() }
    }

    /// The run's network with the grid.
    ///
    /// # Errors
    /// A grid finer than the last map.
    pub fn encoder(&self, run: &TrainedRun) -> anyhow::Result<EncoderConfig> {
        let trained = &run.checkpoint.header.encoder;
        let encoder = EncoderConfig { grid: self.grid.unwrap_or(1), ..trained.clone() };
        encoder.validate().map_err(anyhow::Error::msg).context("--grid")?;
        Ok(encoder)
    }

    /// Fits it on the pictures that the run was trained on (or those named), evenly spaced.
    pub fn fit(&self, run: &TrainedRun) -> anyhow::Result<Readout> {
        let plain = Readout::plain(&self.encoder(run)?);
        if self.no_whiten {
            return Ok(plain);
        }
        let root = self.whiten_on.as_ref().unwrap_or(&run.info.pictures_root);
        let hint =
            || format!("whitening on {}: name pictures with --whiten-on, or say --no-whiten", root.display());
        let edge = run.checkpoint.header.config.shortest_edge();
        let cache = sample(root, edge, WHITEN_PICTURES).with_context(hint)?;
        let representations = run.embed_cache(&plain, &cache)?;
        let dims = self.dims.unwrap_or(plain.encoder.channels());
        match Whitening::fit_leading(&representations, dims) {
            // A first try on a handful of pictures should not fail on its last step.
            Err(error @ WhitenError::TooFew { .. }) if self.whiten_on.is_none() && self.dims.is_none() => {
                tracing::warn!("not whitened: {error}");
                Ok(plain)
            }
            fitted => Ok(Readout { whitening: Some(fitted.with_context(hint)?), ..plain }),
        }
    }
}

#[cfg(test)]
mod tests {
    use latentd_model::{
        ArtefactDraft, Embedding, Golden, GoldenPicture, OutputSpec, Training, write_artefact,
    };
    use serde_json::json;

    use super::*;
    use crate::export::eval_preprocess;

    /// An artefact of a network of 64 channels, read out by a grid of 2 × 2.
    fn artefact(models: &std::path::Path, dim: usize, whitened: Option<bool>) -> Artefact {
        let training = json!({
            "method": "byol", "arch": "resnet18", "width": 0.125, "image_size": 32, "norm": "batch_norm", "grid": 2,
            "parameters": 1, "data": {"description": "d", "pictures": 2, "sha256": "s"}, "epochs": 1, "steps": 2,
            "batch_size": 3, "seed": 4, "command": "c", "config": {}, "started": "2026-01-01T00:00:00Z", "seconds": 1.5
        });
        let training = Training { whitened, ..serde_json::from_value(training).unwrap() };
        let expected = Embedding::from_unnormalised(vec![1.0; dim]).unwrap();
        let picture = GoldenPicture { name: "0.png".into(), bytes: vec![0], expected };
        let draft = ArtefactDraft {
            name: "a".into(),
            version: 1,
            licence: "CC0-1.0".into(),
            description: "A test.".into(),
            preprocess: eval_preprocess(32),
            output: OutputSpec { dim, normalised: true },
            training: Some(training),
            evaluation: Vec::new(),
            reference: None,
        };
        let golden = Golden { pictures: vec![picture] };
        Artefact::open(&write_artefact(models, &draft, b"graph", &golden, "").unwrap()).unwrap()
    }

    #[test]
    fn a_successor_is_read_out_as_the_artefact_was() {
        let options = |dim, whitened| {
            let models = tempfile::tempdir().unwrap();
            let options = ReadoutOptions::of(&artefact(models.path(), dim, whitened));
            (options.grid, options.dims, options.no_whiten)
        };
        assert_eq!(options(48, Some(true)), (Some(2), Some(48), false));
        assert_eq!(options(256, Some(true)), (Some(2), None, false));
        assert_eq!(options(256, Some(false)), (Some(2), None, true));
        // From before it was noted.
        assert_eq!(options(48, None), (Some(2), Some(48), false));
    }
}
