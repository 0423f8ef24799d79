//! `latentd search`: the items nearest to picture files, as a table or as JSON.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};

use super::target::{Asked, TargetArgs};
use crate::store::Neighbour;

/// The arguments.
#[derive(Debug, Args)]
pub struct SearchArgs {
    /// The picture file; of several, the neighbours of their mean
    #[arg(required = true)]
    pictures: Vec<PathBuf>,
    /// A picture file to be far from; may be given several times
    #[arg(long, value_name = "PICTURE")]
    not: Vec<PathBuf>,
    /// Neighbours, at most
    #[arg(short, long, default_value_t = 10)]
    k: usize,
    /// Which items count, told by their metadata, e.g. '{"colour":"red"}'
    #[arg(long)]
    filter: Option<String>,
    /// Lowest score that counts, -1 to 1
    #[arg(long, allow_negative_numbers = true)]
    min_score: Option<f32>,
    /// How much neighbours are to differ from each other, 0 (not at all: the nearest) to 1
    #[arg(long, default_value_t = 0.0)]
    diversity: f32,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// Prints the neighbours, best first; with `--diversity` in the order in which they were chosen.
///
/// # Errors
/// When the picture or the target cannot be opened, or the search is refused.
pub fn run(args: &SearchArgs) -> anyhow::Result<ExitCode> {
    let config = args.target.config()?;
    let read = |path: &PathBuf| {
        let file = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        file.map(Bytes::from)
    };
    let asked = Asked {
        near: args.pictures.iter().map(read).collect::<anyhow::Result<_>>()?,
        far: args.not.iter().map(read).collect::<anyhow::Result<_>>()?,
        k: args.k,
        filter: args.filter.clone(),
        min_score: args.min_score,
        diversity: args.diversity,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let found = runtime.block_on(async {
        let target = args.target.open(&config).await?;
        let found = target.search(asked).await;
        target.close().await?;
        found
    })?;
    let text = if args.json { as_json(&found)? } else { as_table(&found) };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes to standard output; tells whether someone reads it, who may have seen enough, as in
/// `latentd search x.jpg | head -1`.
pub fn print(text: &str) -> anyhow::Result<bool> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        written => Ok(written.map(|()| true)?),
    }
}

fn as_json(found: &[Neighbour]) -> anyhow::Result<String> {
    let one = |neighbour: &Neighbour| {
        let metadata = Value::Object(neighbour.metadata.to_map());
        json!({ "id": neighbour.id.as_str(), "score": neighbour.score, "metadata": metadata })
    };
    let neighbours: Vec<Value> = found.iter().map(one).collect();
    Ok(serde_json::to_string_pretty(&json!({ "neighbours": neighbours }))? + "\n")
}

fn as_table(found: &[Neighbour]) -> String {
    if found.is_empty() {
        return "no neighbours: the collection is empty, or no item passes the filter\n".to_owned();
    }
    let width = found.iter().map(|neighbour| neighbour.id.as_str().chars().count()).max().unwrap_or(0);
    let line = |(place, neighbour): (usize, &Neighbour)| {
        let metadata = match neighbour.metadata.as_str() {
            "{}" => "",
            text => text,
        };
        let line = format!(
            "{:>4}  {:>7.4}  {:width$}  {metadata}",
            place + 1,
            neighbour.score,
            neighbour.id.as_str()
        );
        line.trim_end().to_owned() + "\n"
    };
    found.iter().enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ItemId, Metadata};

    #[test]
    fn the_table_is_aligned() {
        let neighbour = |id: &str, score, metadata: &str| Neighbour {
            id: ItemId::new(id).unwrap(),
            score,
            metadata: Metadata::from_json(metadata).unwrap(),
            vector: None,
        };
        let found = [neighbour("shirts/1.jpg", 0.98768, r#"{"colour":"red"}"#), neighbour("é", -0.5, "{}")];
        let expected = "   1   0.9877  shirts/1.jpg  {\"colour\":\"red\"}\n   2  -0.5000  é\n";
        assert_eq!(as_table(&found), expected);
        let json: Value = serde_json::from_str(&as_json(&found).unwrap()).unwrap();
        assert_eq!(json["neighbours"][0]["metadata"]["colour"], "red");
        assert!(as_table(&[]).starts_with("no neighbours"));
    }
}
