//! `latentd-trainer refresh`: new pictures, the next version, if it is better.

mod activate;
mod current;
mod evidence;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::Context;
use latentd_model::Artefact;

use self::activate::Server;
pub use self::current::Current;
use self::current::newest;
use super::exit::{Exit, LOCKED, NOT_ACTIVATED, NOT_BETTER, STOPPED};
use super::machine::Machine;
use super::overrides::Overrides;
use super::subject::{TrainedRun, Which};
use super::{STOP, export, resume, train};
use crate::data::scan;
use crate::refresh::{Accept, Activation, Notes, Outcome, Plan, Workspace, WorkspaceError, decide};
use crate::run::{now, rfc3339};
use crate::train::TrainError;

/// Epochs of a refresh unless told otherwise.
const EPOCHS: usize = 10;
const LAST: &str = "last.json";
const PLAN: &str = "plan.json";

/// Go on training with new pictures, and write the next version of the encoder if it is better.
///
/// Made for cron: a killed refresh goes on where it was, two never collide, and nothing is written unless the new
/// encoder is better. Exit codes: 0 a new version was written, or there was nothing new; 1 an error; 2 wrong usage;
/// 3 not better, nothing was changed; 4 another refresh is at work; 5 written, but the server does not use it yet
/// (the next refresh tries again); 130 stopped, the same command goes on.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    machine: Machine,
}

#[derive(Debug, clap::Args)]
struct Settings {
    /// The current encoder: an artefact's folder, or `models/NAME` for the newest version of that name.
    #[arg(long, required_unless_present = "run", conflicts_with = "run")]
    artefact: Option<PathBuf>,
    /// A run to go on from, where there is no artefact yet or it holds no weights.
    #[arg(long)]
    run: Option<PathBuf>,
    /// Folder of pictures to go on with: the new ones, and the old ones too unless they should be forgotten.
    #[arg(long)]
    pictures: PathBuf,
    /// Labelled pictures (DIR/<class>/… or DIR/{train,test}/<class>/…): then kNN on them decides.
    #[arg(long)]
    labelled: Option<PathBuf>,
    /// Hours to train; or --epochs. By default 10 epochs.
    #[arg(long, conflicts_with = "epochs")]
    hours: Option<f64>,
    /// Folder of artefacts.
    #[arg(long, short, default_value = "models")]
    out: PathBuf,
    /// Name of the artefact; by default the current one's, or the run's folder's.
    #[arg(long)]
    name: Option<String>,
    /// Folder to work in; by default `.refresh-NAME` in the folder of artefacts.
    #[arg(long)]
    work: Option<PathBuf>,
    /// How much better the new encoder must be.
    #[arg(long, value_enum, default_value = "better")]
    accept: Accept,
    /// Least mean share of each picture's 10 nearest neighbours that both encoders name, 0 to 1.
    #[arg(long)]
    min_overlap: Option<f64>,
    /// Server that shall use the new version: http://HOST:PORT, serving the same folder of artefacts.
    #[arg(long, requires = "admin_key_file", value_name = "URL")]
    activate: Option<String>,
    /// File with the server's admin key.
    #[arg(long)]
    admin_key_file: Option<PathBuf>,
    /// Minutes that the server may take to embed its items again.
    #[arg(long, default_value_t = 120.0)]
    activate_minutes: f64,
    /// Trains even when these pictures were tried on this encoder already.
    #[arg(long)]
    force: bool,
}

impl Args {
    /// Trains, compares, and writes or refuses.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { settings, mut overrides, machine } = self;
        settings.check()?;
        let server = settings.server()?;
        latentd_model::runtime::init(None)?;
        let name = settings.name()?;
        let work = settings.work.clone().unwrap_or_else(|| settings.out.join(format!(".refresh-{name}")));
        let work = Workspace::open(&work).map_err(|e| match e {
            WorkspaceError::Locked(_) => anyhow::Error::new(Exit::new(LOCKED, e.to_string())),
            other => other.into(),
        })?;
        let refresh = Refresh { current: settings.current(&name)?, settings, name, work, server };
        let pictures = scan(&refresh.settings.pictures)?.fingerprint;
        if let Some(written) = refresh.written_before(&pictures)? {
            return refresh.accepted(
                &pictures,
                &written,
                "it was written before this refresh was interrupted",
            );
        }
        if let Some(notes) = refresh.nothing_new(&pictures) {
            return refresh.again(notes);
        }
        overrides.default_epochs(refresh.settings.hours.is_none().then_some(EPOCHS));
        match refresh.train(&pictures, overrides, machine) {
            Err(error) if matches!(error.downcast_ref(), Some(TrainError::Collapsed { .. })) => {
                return refresh.refused(&pictures, format!("{error:#}"));
            }
            outcome => outcome?,
        }
        let run = TrainedRun::open(&refresh.work.run(), Which::default())?;
        let evidence = evidence::gather(run, &refresh.current, &refresh.settings.labelled)?;
        let decision = decide(&evidence, refresh.settings.accept, refresh.settings.min_overlap);
        if !decision.accepted {
            return refresh.refused(&pictures, decision.reason);
        }
        let written = refresh.export(&pictures)?;
        refresh.accepted(&pictures, &written, &decision.reason)
    }
}

impl Settings {
    fn check(&self) -> anyhow::Result<()> {
        if let Some(least) = self.min_overlap {
            anyhow::ensure!((0.0..=1.0).contains(&least), "--min-overlap {least} is outside 0 to 1");
        }
        let minutes = self.activate_minutes;
        anyhow::ensure!(
            (0.0..=1e5).contains(&minutes),
            "--activate-minutes {minutes} is outside 0 to 100000"
        );
        Ok(())
    }

    fn server(&self) -> anyhow::Result<Option<Server>> {
        let (Some(url), Some(file)) = (&self.activate, &self.admin_key_file) else { return Ok(None) };
        Server::new(url, file, self.activate_minutes).map(Some)
    }

    fn name(&self) -> anyhow::Result<String> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let name = match (&self.artefact, &self.run) {
            (Some(path), _) => current::name_of(&current::resolve(path)?),
            (None, run) => run.as_deref().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned()),
        };
        name.context("the name of the encoder does not follow from the path: give --name")
    }

    fn current(&self, name: &str) -> anyhow::Result<Current> {
        match (&self.artefact, &self.run) {
            (Some(path), _) => Current::artefact(&current::resolve(path)?),
            (None, Some(run)) => Current::run(run, &self.out, name),
            (None, None) => anyhow::bail!("give the current encoder with --artefact or --run"),
        }
    }
}

/// A refresh under way, with the work folder locked.
struct Refresh {
    settings: Settings,
    name: String,
    work: Workspace,
    current: Current,
    server: Option<Server>,
}

impl Refresh {
    /// The version that an interrupted refresh of the same pictures had finished writing.
    fn written_before(&self, pictures: &str) -> anyhow::Result<Option<PathBuf>> {
        let plan: Option<Plan> = self.work.read(PLAN);
        let Some(version) = plan.filter(|p| p.pictures == pictures).and_then(|p| p.writing) else {
            return Ok(None);
        };
        let dir = self.settings.out.join(format!("{}-v{version}", self.name));
        if !dir.exists() {
            return Ok(None);
        }
        Artefact::open(&dir)?;
        Ok(Some(dir))
    }

    /// The notes of the last refresh, when it had the same pictures and encoder.
    fn nothing_new(&self, pictures: &str) -> Option<Notes> {
        let notes: Notes = self.work.read(LAST)?;
        (!self.settings.force && notes.covers(pictures, &self.current.id)).then_some(notes)
    }

    /// Says that there is nothing to do, or does what the last refresh left: an activation.
    fn again(&self, notes: Notes) -> anyhow::Result<()> {
        let word = match notes.outcome {
            Outcome::Written => "written",
            Outcome::Refused => "refused",
        };
        println!("nothing new: these pictures were tried at {} and {word}: {}", notes.at, notes.reason);
        let wanted = notes.version.clone().filter(|_| notes.activation != Activation::Done);
        match (&self.server, wanted) {
            (Some(_), Some(version)) => self.activate(notes, &version),
            _ => Ok(()),
        }
    }

    /// Trains, or goes on with what a killed refresh left.
    fn train(&self, pictures: &str, overrides: Overrides, machine: Machine) -> anyhow::Result<()> {
        let plan = Plan { from: self.current.id.clone(), pictures: pictures.to_owned(), writing: None };
        let before: Option<Plan> = self.work.read(PLAN);
        let same = before.is_some_and(|b| b.from == plan.from && b.pictures == plan.pictures);
        if same && self.work.has_run() {
            tracing::info!("going on with the refresh that was interrupted");
            resume::Args::of(self.work.run(), machine).run()?;
        } else {
            self.work.clear()?;
            self.work.write(PLAN, &plan)?;
            let settings = &self.settings;
            train::Args::going_on(
                &settings.pictures,
                self.work.run(),
                &self.current.init,
                settings.hours,
                overrides,
                machine,
            )
            .run()?;
        }
        if STOP.load(Ordering::Relaxed) {
            return Err(Exit::new(STOPPED, "stopped; the same command goes on").into());
        }
        Ok(())
    }

    /// Writes the next version.
    fn export(&self, pictures: &str) -> anyhow::Result<PathBuf> {
        let version = newest(&self.settings.out, &self.name).map_or(1, |(version, _)| version + 1);
        let (from, pictures) = (self.current.id.clone(), pictures.to_owned());
        self.work.write(PLAN, &Plan { from, pictures, writing: Some(version) })?;
        let settings = &self.settings;
        export::Args::next(self.work.run(), &self.name, version, &settings.out, &self.current).run()?;
        Ok(settings.out.join(format!("{}-v{version}", self.name)))
    }

    fn accepted(&self, pictures: &str, written: &Path, reason: &str) -> anyhow::Result<()> {
        let artefact = Artefact::open(written)?;
        let version = artefact.manifest().full_name();
        let activation = if self.server.is_some() { Activation::Pending } else { Activation::NotAsked };
        let notes = Notes {
            newest: artefact.contract().to_string(),
            version: Some(version.clone()),
            activation,
            ..self.notes(pictures, Outcome::Written, reason)
        };
        self.finish(&notes)?;
        println!("{version}: {reason}");
        match self.server {
            Some(_) => self.activate(notes, &version),
            None => Ok(()),
        }
    }

    fn refused(&self, pictures: &str, reason: String) -> anyhow::Result<()> {
        self.finish(&self.notes(pictures, Outcome::Refused, &reason))?;
        Err(Exit::new(NOT_BETTER, format!("no new version: {reason}")).into())
    }

    fn notes(&self, pictures: &str, outcome: Outcome, reason: &str) -> Notes {
        Notes {
            pictures: pictures.to_owned(),
            from: self.current.id.clone(),
            newest: self.current.id.clone(),
            outcome,
            reason: reason.to_owned(),
            version: None,
            activation: Activation::NotAsked,
            at: rfc3339(now()),
        }
    }

    /// Notes the end first: a run without a plan is only rubbish.
    fn finish(&self, notes: &Notes) -> anyhow::Result<()> {
        self.work.write(LAST, notes)?;
        self.work.forget(PLAN);
        self.work.clear()?;
        Ok(())
    }

    fn activate(&self, notes: Notes, version: &str) -> anyhow::Result<()> {
        let Some(server) = &self.server else { return Ok(()) };
        match server.activate(version, self.settings.min_overlap) {
            Ok(text) => {
                println!("{text}");
                self.work.write(LAST, &Notes { activation: Activation::Done, ..notes })?;
                Ok(())
            }
            Err(error) => {
                self.work.write(LAST, &Notes { activation: Activation::Pending, ..notes })?;
                let text = format!("{version} is written, but {server} does not use it: {error:#}");
                Err(Exit::new(NOT_ACTIVATED, text).into())
            }
        }
    }
}
