//! `latentd store` on a distributed store: what can be done there, and what is to be done instead.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::migrate::migrate_all;
use crate::cli::serve::milvus_options;
use crate::config::Config;
use crate::store::embedded::upkeep;
use crate::store::milvus::{Address, Consistency};
use crate::store::{CollectionName, EmbeddedOptions, EmbeddedStore, MilvusStore, Store};

/// How long Milvus is waited for while it packs.
const PACK_LIMIT: Duration = Duration::from_secs(600);

/// A folder that goes when it is no longer used.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> anyhow::Result<Self> {
        // A rest of a run that was broken off.
        if path.is_dir() {
            std::fs::remove_dir_all(&path).with_context(|| format!("cannot empty {}", path.display()))?;
        }
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left over it is emptied by the next run.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Opens the store. In a session is seen what anybody was told was written before it began, and no read of an item
/// waits for a time tick, as it would with `strong`.
async fn open(config: &Config, address: &Address) -> anyhow::Result<MilvusStore> {
    let address = Address { consistency: Consistency::Session, ..address.clone() };
    Ok(MilvusStore::open(milvus_options(config, address)?).await?)
}

/// Compares every item with what can be told of it.
pub async fn check(config: &Config, address: &Address, repair: bool) -> anyhow::Result<ExitCode> {
    ensure!(
        !repair,
        "--repair mends the embedded store only: in {address} write the items anew that the check names, or delete them"
    );
    let store = open(config, address).await?;
    let checked = store.check().await?;
    for one in &checked {
        println!("collection {}: {} items, sha256 {}", one.name, one.items, one.checksum);
        if one.counted != one.items + one.damaged {
            println!(
                "DAMAGED: collection {}: Milvus counts {} items in {}",
                one.name, one.counted, one.physical
            );
        }
        one.problems.iter().for_each(|line| println!("DAMAGED: collection {}: {line}", one.name));
        if one.damaged as usize > one.problems.len() {
            println!("DAMAGED: collection {}: {} items in all", one.name, one.damaged);
        }
    }
    store.close().await?;
    if checked.iter().all(|one| one.sound()) {
        println!("schemas, counts and items are as they should be");
        return Ok(ExitCode::SUCCESS);
    }
    println!("the store is damaged: write the items named anew, or delete them");
    Ok(ExitCode::FAILURE)
}

/// Copies every collection into the file of an embedded store, and compares.
pub async fn backup(config: &Config, address: &Address, to: &Path) -> anyhow::Result<ExitCode> {
    ensure!(!to.exists(), "{} is there already, and is not overwritten", to.display());
    let dir = Scratch::new(to.with_extension("backup-part"))?;
    let from = open(config, address).await?;
    let embedded = EmbeddedStore::open(EmbeddedOptions::new(&dir.0)).await?;
    let copied = migrate_all(&from, &embedded).await;
    from.close().await?;
    embedded.close().await?;
    drop(embedded);
    copied.context("the copy is not the same as the store: nothing may write to it meanwhile")?;
    upkeep::backup(&dir.0, to)?;
    println!("copied to {}", to.display());
    Ok(ExitCode::SUCCESS)
}

/// Writes what a backup holds into the store, and compares.
pub async fn restore(config: &Config, address: &Address, from: &Path) -> anyhow::Result<ExitCode> {
    let dir = Scratch::new(config.data_dir.join("restore-part"))?;
    upkeep::restore(from, &dir.0)?;
    let to = open(config, address).await?;
    let embedded = EmbeddedStore::open(EmbeddedOptions::new(&dir.0)).await?;
    let copied = migrate_all(&embedded, &to).await;
    embedded.close().await?;
    drop(embedded);
    to.close().await?;
    copied?;
    println!("restored to {address}");
    Ok(ExitCode::SUCCESS)
}

/// Has Milvus pack every collection.
pub async fn compact(config: &Config, address: &Address) -> anyhow::Result<ExitCode> {
    let store = open(config, address).await?;
    for (name, done) in store.compact(PACK_LIMIT).await? {
        println!("collection {name}: {}", if done { "packed" } else { "Milvus goes on packing it" });
    }
    store.close().await?;
    Ok(ExitCode::SUCCESS)
}

/// Measures what Milvus finds of the exact neighbours.
pub async fn recall(
    config: &Config,
    address: &Address,
    collection: &CollectionName,
    k: usize,
    queries: usize,
) -> anyhow::Result<ExitCode> {
    let store = open(config, address).await?;
    let measured = store.recall(collection, k, queries).await?;
    store.close().await?;
    let measured = measured.with_context(|| format!("collection {collection} has no items"))?;
    println!(
        "{}: recall@{k} {:.4} over {} items; {:.3} ms a search in Milvus, {:.3} ms exactly here, reading all vectors once",
        measured.kind.name(),
        measured.recall,
        measured.queries,
        measured.ms,
        measured.exact_ms
    );
    Ok(ExitCode::SUCCESS)
}
