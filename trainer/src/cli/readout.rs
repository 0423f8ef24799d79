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
        let dims = artefact.manifest().output.dim;
        let fewer = dims < shape.dim();
        Self { grid: Some(shape.grid), dims: fewer.then_some(dims), ..Self::default() }
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
