//! `latentd-trainer export RUN`.

use std::path::{Path, PathBuf};

use latentd_model::{DataFingerprint, EvaluationFigure, Training};

use super::readout::ReadoutOptions;
use super::refresh::Current;
use super::subject::{TrainedRun, Which};
use super::{command_line, report};
use crate::data::scan;
use crate::encode::PictureEncoder;
use crate::eval::EvalTable;
use crate::export::{Export, export};
use crate::nn::weights::Weights;
use crate::readout::Readout;
use crate::run::rfc3339;

/// What pictures are unless somebody says more.
const DATA: &str = "own pictures, without labels";
/// Weights are their owner's unless somebody says otherwise.
const LICENCE: &str = "LicenseRef-proprietary";

/// Write a run's encoder as an artefact that `latentd serve` loads.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run's folder, or a checkpoint in it.
    run: PathBuf,
    /// Name of the artefact, without its version.
    #[arg(long, default_value = "byol")]
    name: String,
    /// Its version; by default the next free one.
    #[arg(long)]
    version: Option<u32>,
    /// Folder of artefacts.
    #[arg(long, default_value = "models")]
    models: PathBuf,
    /// Pictures for parity check, golden check and report; 8 of them are copied into the artefact.
    /// By default those trained on.
    #[arg(long)]
    pictures: Option<PathBuf>,
    #[command(flatten)]
    readout: ReadoutOptions,
    #[command(flatten)]
    which: Which,
    /// Leaves out weights.safetensors, from which `train --init` goes on; it holds encoder, projector and predictor.
    #[arg(long)]
    no_weights: bool,
    /// What the pictures trained on are, for a person.
    #[arg(long, default_value = DATA)]
    data: String,
    /// Licence of the weights, as SPDX.
    #[arg(long, default_value = LICENCE)]
    licence: String,
    /// Source commit of the trainer, for the record.
    #[arg(long)]
    commit: Option<String>,
}

impl Args {
    /// The next version of the current encoder.
    pub fn next(run: PathBuf, name: &str, version: u32, models: &Path, current: &Current) -> Self {
        Self {
            run,
            name: name.to_owned(),
            version: Some(version),
            models: models.to_owned(),
            pictures: None,
            readout: current.readout.clone(),
            which: Which::default(),
            no_weights: false,
            data: current.data.clone().unwrap_or_else(|| DATA.to_owned()),
            licence: current.licence.clone().unwrap_or_else(|| LICENCE.to_owned()),
            commit: None,
        }
    }

    /// Exports, and says what was checked.
    pub fn run(self) -> anyhow::Result<()> {
        latentd_model::runtime::init(None)?;
        let run = TrainedRun::open(&self.run, self.which)?;
        let header = &run.checkpoint.header;
        let root = self.pictures.clone().unwrap_or_else(|| run.info.pictures_root.clone());
        let pictures = scan(&root)?;
        let readout = self.readout.fit(&run)?;
        let mut weights = PictureEncoder::weights_of(&header.encoder, &run.checkpoint.arrays.online)?;
        readout.whitening.iter().for_each(|w| w.save(&mut weights));
        let evaluation = report::evaluation(&run, &readout);
        let html = report::build(&run, &readout, &root, &self.name)?;
        let command = command_line();
        let description = format!(
            "{} of width {}, trained with BYOL on {} ({} pictures, no labels)",
            header.config.arch.as_str(),
            header.config.width,
            self.data,
            run.info.pictures
        );
        let networks = (!self.no_weights).then(|| run.checkpoint.networks().to_bytes()).transpose();
        let networks = networks.map_err(anyhow::Error::msg)?;
        let input = Export {
            models_dir: &self.models,
            name: &self.name,
            version: self.version,
            licence: &self.licence,
            description: &description,
            encoder: &readout.encoder,
            weights: &weights,
            training: Some(self.training(&run, &readout, &weights)?),
            evaluation: evaluation.as_ref().map(figures).unwrap_or_default(),
            networks: networks.as_deref(),
            report_html: &html,
            command: &command,
            pictures_root: &root,
            pictures: &pictures.pictures,
            trained_on: &trained_on(&run.info.pictures_root),
        };
        let mut encoder = readout.encoder(&weights)?;
        let exported = export(&input, |pictures| Ok(encoder.embed(pictures)?))?;
        println!("{}", exported.dir.display());
        let (parity, golden) = (exported.parity, exported.golden);
        println!("contract {}, {} KiB", exported.contract, exported.onnx_bytes >> 10);
        println!(
            "trained network against ONNX Runtime on {} pictures: cosine at least {:.6}, mean {:.6}",
            parity.pictures, parity.min_cosine, parity.mean_cosine
        );
        println!("golden check: {} pictures, cosine at least {:.6}", golden.cosines.len(), golden.worst);
        match exported.reference {
            Ok(reference) => println!(
                "reference: {} pictures; {} held out are {:.4} from them in windows of {}",
                reference.pictures, reference.held_out, reference.distance_mean, reference.window
            ),
            Err(error) => tracing::warn!(
                "no reference, so a server of it cannot tell how far its pictures are from these: {error}; \
                 `latentd model reference` adds one later"
            ),
        }
        println!("serve it with `latentd serve --model {}`", exported.dir.display());
        Ok(())
    }

    fn training(&self, run: &TrainedRun, readout: &Readout, weights: &Weights) -> anyhow::Result<Training> {
        let (header, info) = (&run.checkpoint.header, &run.info);
        let config = &header.config;
        let pictures = info.pictures as u64;
        Ok(Training {
            method: "byol".into(),
            arch: config.arch.as_str().into(),
            width: config.width,
            image_size: config.image_size,
            norm: config.norm.as_str().into(),
            grid: readout.encoder.grid,
            whitened: Some(readout.whitening.is_some()),
            parameters: weights.parameters() as u64,
            data: DataFingerprint {
                description: self.data.clone(),
                pictures,
                sha256: info.fingerprint.clone(),
            },
            epochs: header.step * config.epochs as u64 / header.total_steps.max(1),
            steps: header.step,
            batch_size: config.batch,
            seed: config.seed,
            commit: self.commit.clone(),
            command: info.command.clone(),
            config: serde_json::to_value(config)?,
            started: rfc3339(info.started),
            seconds: header.seconds,
        })
    }
}

/// The pictures trained on, where they still are.
fn trained_on(root: &Path) -> Vec<PathBuf> {
    match scan(root) {
        Ok(found) => found.pictures.iter().map(|picture| root.join(picture)).collect(),
        Err(error) => {
            tracing::warn!("the pictures trained on: {error}");
            Vec::new()
        }
    }
}

/// An evaluation as a manifest holds it.
fn figures(table: &EvalTable) -> Vec<EvaluationFigure> {
    let row = |subject: &str, metric: &str, value: f64| EvaluationFigure {
        dataset: table.dataset.clone(),
        metric: metric.into(),
        subject: subject.into(),
        value,
        command: table.command.clone(),
    };
    let accuracy = table.rows.iter().map(|r| row(&r.subject, r.metric.name(), r.value));
    let spread = table.representations.iter().flat_map(|r| {
        [("representation_std", r.std), ("effective_rank", r.effective_rank)]
            .map(|(metric, value)| row(&r.subject, metric, value))
    });
    accuracy.chain(spread).collect()
}
