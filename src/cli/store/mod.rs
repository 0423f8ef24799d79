//! `latentd store`: looks after a data folder, or the store that --store names.

mod distributed;
mod migrate;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::Settings;
use super::serve::store_options;
use crate::config::Config;
use crate::store::embedded::upkeep::{self, CheckReport};
use crate::store::milvus::Address;
use crate::store::{CollectionName, EmbeddedStore, Store, StoreChoice, Vectors};

/// Looks after the data folder (--data-dir), or the distributed store (--store milvus://…).
#[derive(Debug, Args)]
pub struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Compare everything in the store with its checksums (distributed: with its schema and counts), also while a server
    /// runs; exit 1 when it is damaged
    Check {
        /// Delete the items that are damaged and build the database's indexes anew; embedded only, the server must be
        /// stopped
        #[arg(long)]
        repair: bool,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Copy the store to a new file: as of one moment, also while a server runs; a distributed one must not be written
    /// meanwhile
    Backup {
        /// The file to write
        #[arg(value_name = "FILE")]
        to: PathBuf,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Make a backup the store of a data folder that has none, or write it into a distributed one
    Restore {
        /// The file that `backup` wrote
        #[arg(value_name = "FILE")]
        from: PathBuf,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Pack the store, so that what was deleted takes no space; the server must be stopped, but for a distributed one
    Compact {
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Copy the embedded store into another, compare, and go on where it was broken off
    Migrate(Box<migrate::MigrateArgs>),
    /// Measure which share of the exact neighbours searches find; the server must be stopped, but for a distributed one
    Recall {
        /// The collection
        #[arg(long, default_value = CollectionName::DEFAULT)]
        collection: String,
        /// Neighbours of each search
        #[arg(long, short, default_value_t = 10)]
        k: usize,
        /// Items whose neighbours are looked for
        #[arg(long, default_value_t = 200)]
        queries: usize,
        #[command(flatten)]
        settings: Box<Settings>,
    },
}

/// Runs it.
///
/// # Errors
/// When the data folder is in use, missing or cannot be read, or the distributed store does not answer.
pub fn run(args: StoreArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        StoreCommand::Check { repair, settings } => {
            let config = settings.load()?;
            match distributed(&config) {
                Some(address) => block_on(distributed::check(&config, address, repair)),
                None => check(&config, repair),
            }
        }
        StoreCommand::Backup { to, settings } => {
            let config = settings.load()?;
            if let Some(address) = distributed(&config) {
                return block_on(distributed::backup(&config, address, &to));
            }
            let report = upkeep::backup(&config.data_dir, &to)?;
            print(&report);
            println!("copied to {}", to.display());
            Ok(verdict(&report))
        }
        StoreCommand::Restore { from, settings } => {
            let config = settings.load()?;
            if let Some(address) = distributed(&config) {
                return block_on(distributed::restore(&config, address, &from));
            }
            print(&upkeep::restore(&from, &config.data_dir)?);
            println!("restored to {}", config.data_dir.display());
            Ok(ExitCode::SUCCESS)
        }
        StoreCommand::Compact { settings } => {
            let config = settings.load()?;
            if let Some(address) = distributed(&config) {
                return block_on(distributed::compact(&config, address));
            }
            let (before, after) = upkeep::compact(&config.data_dir)?;
            println!("{before} bytes before, {after} after");
            Ok(ExitCode::SUCCESS)
        }
        StoreCommand::Migrate(args) => migrate::run(*args),
        StoreCommand::Recall { collection, k, queries, settings } => {
            recall(*settings, &collection, k, queries)
        }
    }
}

/// The address of the distributed store that the settings name, if they do.
fn distributed(config: &Config) -> Option<&Address> {
    match &config.store {
        StoreChoice::Embedded => None,
        StoreChoice::Milvus(address) => Some(address),
    }
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(work)
}

fn check(config: &Config, repair: bool) -> anyhow::Result<ExitCode> {
    let path = upkeep::database(&config.data_dir);
    let report = upkeep::check(&path)?;
    print(&report);
    if report.sound() || !repair {
        return Ok(verdict(&report));
    }
    let deleted = upkeep::repair(&config.data_dir)?;
    println!("repaired: {deleted} damaged items deleted; write them again");
    let report = upkeep::check(&path)?;
    Ok(verdict(&report))
}

fn print(report: &CheckReport) {
    println!("schema version {}, {} writes", report.schema, report.seq);
    report.collections.iter().for_each(|(name, items)| println!("collection {name}: {items} items"));
    report.problems.iter().for_each(|line| println!("DAMAGED: {line}"));
    for (name, id) in &report.damaged {
        println!(
            "DAMAGED: item {id:?} of collection {name} does not fit its checksum; written again it heals"
        );
    }
}

fn verdict(report: &CheckReport) -> ExitCode {
    if report.sound() {
        println!("everything fits its checksum");
        return ExitCode::SUCCESS;
    }
    println!("the store is damaged: delete the damaged items with --repair, or restore a backup");
    ExitCode::FAILURE
}

fn recall(settings: Settings, collection: &str, k: usize, queries: usize) -> anyhow::Result<ExitCode> {
    let config = settings.load()?;
    let collection = CollectionName::new(collection)?;
    anyhow::ensure!((1..=1000).contains(&k), "--k must be 1 to 1000");
    anyhow::ensure!((1..=100_000).contains(&queries), "--queries must be 1 to 100000");
    if let Some(address) = distributed(&config) {
        return block_on(distributed::recall(&config, address, &collection, k, queries));
    }
    let path = upkeep::database(&config.data_dir);
    anyhow::ensure!(path.is_file(), "{} holds no store", config.data_dir.display());
    block_on(async {
        let store = EmbeddedStore::open(store_options(&config)).await?;
        let measured = store.recall(&collection, k, queries).await?;
        let measured = measured.with_context(|| format!("collection {collection} has no items"))?;
        let vectors = config.vectors;
        let truth = match vectors {
            Vectors::F32 => String::new(),
            _ => format!(" with {} vectors in memory, against f32 of the database", vectors.name()),
        };
        println!(
            "{}: recall@{k} {:.4} over {} items{truth}; {:.3} ms a search, {:.3} ms exactly",
            measured.kind.name(),
            measured.recall,
            measured.queries,
            measured.ms,
            measured.exact_ms
        );
        store.close().await?;
        Ok(ExitCode::SUCCESS)
    })
}
