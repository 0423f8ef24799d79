//! `latentd store migrate`: the embedded store's items into a distributed one.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::Settings;
use crate::cli::serve::open_store;
use crate::config::{self, Config};
use crate::store::migrate::{self, Migrated};
use crate::store::milvus::Consistency;
use crate::store::{CollectionInfo, Store, StoreChoice};
use crate::telemetry;

/// The arguments.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// Where to: milvus://host:port/database; pictures go to --data-dir/pictures
    #[arg(long)]
    to: StoreChoice,
    #[command(flatten)]
    settings: Settings,
}

/// How often a line is logged where there is no terminal.
const EVERY: Duration = Duration::from_secs(10);

/// Copies every collection, then compares item by item. Ctrl-C keeps what was copied; the same command goes on.
///
/// # Errors
/// When a store cannot be opened, a write fails, or the stores differ in the end.
pub fn run(args: MigrateArgs) -> anyhow::Result<ExitCode> {
    let log = args.settings.layer.log.clone().unwrap_or_else(|| "warn".to_owned());
    let config = Config { log, ..args.settings.load()? };
    telemetry::start_log(&config);
    ensure!(
        config.store == StoreChoice::Embedded,
        "only the embedded store can be migrated: leave --store out; `store backup` copies a distributed one into a file"
    );
    let StoreChoice::Milvus(mut address) = args.to else {
        bail!("--to takes the address of a distributed store")
    };
    // What an earlier run wrote a moment ago must be seen.
    address.consistency = Consistency::Strong;
    ensure!(
        config.data_dir.join("store.sqlite3").is_file(),
        "there is no store in {}: name its folder with --data-dir",
        config.data_dir.display()
    );
    let target = Config { store: StoreChoice::Milvus(address), ..config.clone() };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(config::cores()).enable_all().build()?;
    runtime.block_on(async {
        let from = open_store(&config).await?;
        let to = open_store(&target).await?;
        let stopped = tokio::signal::ctrl_c();
        let done = tokio::select! {
            done = migrate_all(&*from, &*to) => done,
            _ = stopped => bail!("stopped; what was copied is kept, and the same command goes on from there"),
        };
        from.close().await?;
        to.close().await?;
        done?;
        eprintln!("the stores are the same: serve with --store {}", target.store);
        Ok(ExitCode::SUCCESS)
    })
}

/// Copies and compares every collection.
pub async fn migrate_all(from: &dyn Store, to: &dyn Store) -> anyhow::Result<()> {
    let collections = from.collections().await?;
    ensure!(!collections.is_empty(), "the store has no items");
    for info in &collections {
        ensure!(
            info.damaged == 0,
            "collection {} has {} damaged items: write them again first",
            info.name,
            info.damaged
        );
        let migrated = one(from, to, info).await.with_context(|| format!("collection {}", info.name))?;
        let Migrated { name, items, written, checksum } = migrated;
        println!("{name}: {items} items, {written} copied now, sha256 {checksum}");
    }
    Ok(())
}

async fn one(from: &dyn Store, to: &dyn Store, info: &CollectionInfo) -> anyhow::Result<Migrated> {
    // Every item is gone through twice: copied, and compared.
    let template = "{msg} {bar:32} {percent} % {per_sec} {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(2 * info.items).with_style(style).with_message(info.name.to_string());
    let mut told = Instant::now();
    let mut done = |items: usize| {
        bar.inc(items as u64);
        if bar.is_hidden() && told.elapsed() > EVERY {
            told = Instant::now();
            eprintln!("{}: {} %", info.name, 100 * bar.position() / (2 * info.items).max(1));
        }
    };
    let migrated = migrate::collection(from, to, info, &mut done).await;
    bar.finish_and_clear();
    Ok(migrated?)
}
