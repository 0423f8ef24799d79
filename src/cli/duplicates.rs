//! `latentd duplicates`: pairs of items that are nearly the same, one a line.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::client::Client;
use super::search::print;
use super::serve::open_store;
use super::target::TargetArgs;
use crate::store::duplicates::{self, Listing, Page, Pair};
use crate::store::{CollectionName, ItemId, MAX_PAGE};

/// The arguments.
#[derive(Debug, Args)]
pub struct DuplicatesArgs {
    /// Lowest score of two items that count as nearly the same, -1 to 1
    #[arg(short, long, default_value_t = 0.95, allow_negative_numbers = true)]
    threshold: f32,
    /// Print lines of JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// Time of one page on a data folder, after which Ctrl-C would be noticed.
const PAGE: Duration = Duration::from_secs(1);

/// Prints the pairs as they are found: in the order of the first id, the most alike first.
///
/// # Errors
/// When the target cannot be opened, or the listing is refused.
pub fn run(args: &DuplicatesArgs) -> anyhow::Result<ExitCode> {
    let config = args.target.config()?;
    ensure!((-1.0..=1.0).contains(&args.threshold), "--threshold must be -1 to 1");
    let collection = args.target.collection()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match args.target.client(&config)? {
            Some(client) => {
                list(args, async |after| remote(&client, &collection, args.threshold, after).await).await
            }
            None => {
                let store = open_store(&config).await?;
                let page = async |after| {
                    let (collection, threshold) = (collection.clone(), args.threshold);
                    let listing = Listing { collection, threshold, after, limit: MAX_PAGE, time: PAGE };
                    Ok(duplicates::page(&*store, listing).await?)
                };
                let listed = list(args, page).await;
                store.close().await?;
                listed
            }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn list(
    args: &DuplicatesArgs,
    page: impl AsyncFn(Option<ItemId>) -> anyhow::Result<Page>,
) -> anyhow::Result<()> {
    let mut after = None;
    let (mut pairs, mut items) = (0, 0);
    loop {
        let Page { pairs: found, examined, next } = page(after).await?;
        (pairs, items) = (pairs + found.len(), items + examined);
        let text: String = found.iter().map(|pair| line(pair, args.json)).collect();
        if !print(&text)? {
            return Ok(());
        }
        after = next;
        if after.is_none() {
            break;
        }
    }
    eprintln!("{pairs} pairs among {items} items");
    Ok(())
}

fn line(pair: &Pair, as_json: bool) -> String {
    let Pair { id, other, score } = pair;
    if as_json {
        return json!({ "id": id.as_str(), "other": other.as_str(), "score": score }).to_string() + "\n";
    }
    format!("{score:>7.4}  {}  {}\n", id.as_str(), other.as_str())
}

async fn remote(
    client: &Client,
    collection: &CollectionName,
    threshold: f32,
    after: Option<ItemId>,
) -> anyhow::Result<Page> {
    let (threshold, limit) = (threshold.to_string(), MAX_PAGE.to_string());
    let mut query =
        vec![("collection", collection.as_str()), ("threshold", &threshold), ("limit", limit.as_str())];
    query.extend(after.as_ref().map(|id| ("after", id.as_str())));
    let reply = client.get("/duplicates", &query).await?;
    let id = |value: &Value| value.as_str().and_then(|text| ItemId::new(text).ok());
    let pair = |one: &Value| {
        let score = one["score"].as_f64()? as f32;
        Some(Pair { id: id(&one["id"])?, other: id(&one["other"])?, score })
    };
    let pairs = reply["pairs"].as_array().context("/duplicates gave no pairs")?;
    let pairs = pairs.iter().map(|one| pair(one).context("/duplicates gave something that is no pair"));
    let examined = reply["examined"].as_u64().unwrap_or(0) as usize;
    Ok(Page { pairs: pairs.collect::<anyhow::Result<_>>()?, examined, next: id(&reply["next"]) })
}
