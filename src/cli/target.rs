//! The target: where `index` and `search` work, a data folder of this machine or a running server.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use latentd_model::{Contract, ImageBytes};
use serde_json::Value;

use super::Settings;
use super::client::Client;
use super::serve::{Opened, open_model_of, open_store};
use crate::admission::Admission;
use crate::config::{Config, KeepPictures};
use crate::embedder::{Embedder, Shared};
use crate::indexer::{self, Entry, Source};
use crate::store::diversify::Diversity;
use crate::store::{
    CollectionName, ContentHash, Filter, InvalidValue, ItemId, Metadata, Neighbour, Query, Store, examples,
};
use crate::telemetry::{self, Metrics};

/// Where to work.
#[derive(Debug, Clone, Args)]
pub struct TargetArgs {
    /// Address of a running server, e.g. http://127.0.0.1:8080 or https://…; without it the data folder is opened here
    #[arg(long, env = "LATENTD_URL", hide_env_values = true)]
    url: Option<String>,
    /// File with the API key that the server asks for
    #[arg(long, env = "LATENTD_KEY_FILE", hide_env_values = true)]
    key_file: Option<PathBuf>,
    /// The collection
    #[arg(long, default_value = CollectionName::DEFAULT)]
    collection: String,
    #[command(flatten)]
    settings: Settings,
}

impl TargetArgs {
    /// The settings, logging only what is wrong unless asked for more.
    ///
    /// # Errors
    /// See [`Settings::load`].
    pub fn config(&self) -> anyhow::Result<Config> {
        let log = self.settings.layer.log.clone().unwrap_or_else(|| "warn".to_owned());
        let config = Config { log, ..self.settings.clone().load()? };
        telemetry::start_log(&config);
        Ok(config)
    }

    /// The collection.
    ///
    /// # Errors
    /// When it is no name.
    pub fn collection(&self) -> anyhow::Result<CollectionName> {
        Ok(CollectionName::new(&self.collection)?)
    }

    /// The running server, where one is named.
    ///
    /// # Errors
    /// See [`Client::new`].
    pub fn client(&self, config: &Config) -> anyhow::Result<Option<Client>> {
        let client = |url: &String| Client::new(url, self.key_file.as_deref(), &config.ca_file);
        self.url.as_ref().map(client).transpose()
    }

    /// Opens the target.
    ///
    /// # Errors
    /// When the data folder is in use or cannot be opened, there is no encoder, or the server does not answer.
    pub async fn open(&self, config: &Config) -> anyhow::Result<Target> {
        let collection = self.collection()?;
        let place = match self.client(config)? {
            Some(client) => {
                let info = client.get("/info", &[]).await?;
                let most = info["limits"]["max_images"].as_u64().and_then(|most| usize::try_from(most).ok());
                let contract = info["model"]["contract"].as_str().and_then(|text| text.parse().ok());
                let tells = "/info tells no limits and no contract: is this a latentd?";
                let (max_images, contract) = most.zip(contract).context(tells)?;
                Place::Remote { client, max_images, contract }
            }
            None => {
                // First the store: when a server holds it, that is known before the encoder is loaded.
                let store = open_store(config).await?;
                let Opened { artefact, backends, .. } = open_model_of(config, &*store).await?;
                let admission = Admission::new(config.queue_images, config.queue_bytes);
                let metrics = Arc::new(Metrics::new()?);
                let embedder =
                    Embedder::start(config, artefact, backends, Shared { admission, metrics, cache: None })?;
                Place::Local { embedder, store, keep: config.keep_pictures }
            }
        };
        Ok(Target { collection, place })
    }
}

/// A collection somewhere.
pub struct Target {
    collection: CollectionName,
    place: Place,
}

enum Place {
    Local { embedder: Embedder, store: Arc<dyn Store>, keep: KeepPictures },
    Remote { client: Client, max_images: usize, contract: Contract },
}

/// A picture file that is to become an item.
pub struct Picture {
    /// The item's id.
    pub id: ItemId,
    /// The file.
    pub bytes: Bytes,
}

/// A search by pictures.
pub struct Asked {
    /// Files of what to be near to.
    pub near: Vec<Bytes>,
    /// Files of what to be far from.
    pub far: Vec<Bytes>,
    /// Neighbours, at most.
    pub k: usize,
    /// Which items count.
    pub filter: Option<String>,
    /// Lowest score that counts.
    pub min_score: Option<f32>,
    /// How much neighbours are to differ from each other, 0 to 1.
    pub diversity: f32,
}

/// What became of a picture: nothing to tell, or a code and a message.
pub type Outcome = Result<(), (String, String)>;

impl Target {
    /// Pictures that go into one call.
    #[must_use]
    pub fn batch(&self, config: &Config) -> usize {
        let most = match &self.place {
            Place::Local { .. } => 2 * config.max_batch(),
            Place::Remote { max_images, .. } => *max_images,
        };
        most.clamp(1, 64).min(config.queue_images)
    }

    /// Refuses a collection that holds vectors of another encoder than the one that would be used.
    ///
    /// # Errors
    /// When the contracts differ.
    pub async fn check_contract(&self) -> anyhow::Result<()> {
        let (encoder, bound) = match &self.place {
            Place::Local { embedder, store, .. } => {
                let infos = store.collections().await?;
                let bound =
                    infos.into_iter().find(|info| info.name == self.collection).map(|info| info.contract);
                (embedder.artefact().contract(), bound)
            }
            Place::Remote { client, contract: encoder, .. } => {
                let contract = |value: &Value| value.as_str().and_then(|text| text.parse::<Contract>().ok());
                let reply = client.get("/collections", &[]).await?;
                let collections = reply["collections"].as_array();
                let mut ours =
                    collections.into_iter().flatten().filter(|one| one["name"] == self.collection.as_str());
                (*encoder, ours.next().and_then(|one| contract(&one["contract"])))
            }
        };
        ensure!(
            bound.is_none_or(|bound| bound == encoder),
            "collection {} holds vectors of contract {}, but this encoder's contract is {encoder}: use another --collection, or delete this one and index again",
            self.collection,
            bound.unwrap_or(encoder),
        );
        Ok(())
    }

    /// The content hashes of the items that are there already, by id.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn known(&self) -> anyhow::Result<HashMap<ItemId, ContentHash>> {
        const PAGE: usize = crate::store::MAX_PAGE;
        let mut known = HashMap::new();
        let mut after: Option<ItemId> = None;
        loop {
            let (page, next) = match &self.place {
                Place::Local { store, .. } => {
                    let page = match store.list(self.collection.clone(), after, PAGE, false).await {
                        Err(crate::store::StoreError::UnknownCollection(_)) => Vec::new(),
                        page => page?,
                    };
                    let next = page.last().filter(|_| page.len() == PAGE).map(|item| item.id.clone());
                    (page.into_iter().map(|item| (item.id, item.content_hash)).collect(), next)
                }
                Place::Remote { client, .. } => self.remote_page(client, after.as_ref()).await?,
            };
            known.extend(page);
            after = next;
            if after.is_none() {
                return Ok(known);
            }
        }
    }

    async fn remote_page(
        &self,
        client: &Client,
        after: Option<&ItemId>,
    ) -> anyhow::Result<(Vec<(ItemId, ContentHash)>, Option<ItemId>)> {
        let limit = crate::store::MAX_PAGE.to_string();
        let mut query = vec![("collection", self.collection.as_str()), ("limit", limit.as_str())];
        query.extend(after.map(|id| ("after", id.as_str())));
        let page = match client.get("/items", &query).await {
            Err(error) if error.to_string().ends_with("(unknown_collection)") => {
                return Ok((Vec::new(), None));
            }
            page => page?,
        };
        let items = page["items"].as_array().context("/items gave no items")?;
        let item = |item: &Value| {
            let id = ItemId::new(item["id"].as_str()?).ok()?;
            Some((id, item["content_hash"].as_str()?.parse().ok()?))
        };
        let items = items.iter().map(|one| item(one).context("/items gave something that is no item"));
        let next = page["next"].as_str().map(ItemId::new).transpose()?;
        Ok((items.collect::<anyhow::Result<_>>()?, next))
    }

    /// Embeds and keeps pictures; each has its own outcome, in order.
    ///
    /// # Errors
    /// When nothing was kept.
    pub async fn put(&self, pictures: Vec<Picture>) -> anyhow::Result<Vec<Outcome>> {
        match &self.place {
            Place::Local { embedder, store, keep } => {
                let entry = |Picture { id, bytes }| Entry {
                    id,
                    source: Source::Picture(ImageBytes(bytes)),
                    metadata: Metadata::default(),
                };
                let entries = pictures.into_iter().map(entry).collect();
                let written =
                    indexer::index(embedder, &**store, self.collection.clone(), entries, *keep, None).await?;
                let outcome = |result: Result<_, indexer::IndexError>| {
                    result.map(drop).map_err(|error| (error.code().to_owned(), error.to_string()))
                };
                Ok(written.into_iter().map(outcome).collect())
            }
            Place::Remote { client, .. } => {
                let file = |Picture { id, bytes }: Picture| (id.to_string(), bytes);
                let files: Vec<_> = pictures.into_iter().map(file).collect();
                let query = [("collection", self.collection.as_str())];
                // Programs disagree on how a backslash is written in the file name of a form.
                let reply = if files.iter().any(|(name, _)| name.contains('\\')) {
                    client.post_lines("/items", &query, as_lines(&files)).await?
                } else {
                    client.post_files("/items", &query, &files).await?
                };
                let results = reply["results"].as_array().context("/items gave no results")?;
                ensure!(results.len() == files.len(), "/items gave another number of results");
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let outcome = |result: &Value| match &result["error"] {
                    Value::Null => Ok(()),
                    error => Err((text(&error["code"]), text(&error["message"]))),
                };
                Ok(results.iter().map(outcome).collect())
            }
        }
    }

    /// The items nearest to pictures.
    ///
    /// # Errors
    /// When a picture cannot be embedded, or the search is refused.
    pub async fn search(&self, asked: Asked) -> anyhow::Result<Vec<Neighbour>> {
        match &self.place {
            Place::Local { embedder, store, .. } => {
                let Asked { near, far, k, filter, min_score, diversity } = asked;
                let filter = filter.as_deref().map(Filter::from_json).transpose()?;
                let contract = embedder.artefact().contract();
                let embedded = async |pictures: Vec<Bytes>| -> anyhow::Result<Vec<examples::Example>> {
                    let mut vectors = Vec::with_capacity(pictures.len());
                    for picture in pictures {
                        vectors.push((embedder.embed(ImageBytes(picture)).await?.embedding, contract));
                    }
                    Ok(vectors)
                };
                let (near, far) = (embedded(near).await?, embedded(far).await?);
                let (vector, contract) = examples::joined(&self.collection, &near, &far)?;
                let diversity = Diversity::new(diversity)?;
                ensure!((1..=Query::MAX_K).contains(&k), InvalidValue::K(k));
                let (most, exclude, with_vectors) =
                    (diversity.candidates(k), Vec::new(), diversity.matters());
                let query = Query { vector, contract, k: most, filter, exclude, min_score, with_vectors };
                let found = store.search(self.collection.clone(), query).await?;
                Ok(diversity.choose(found, k, || false))
            }
            Place::Remote { client, .. } => {
                let reply = self.search_remotely(client, asked).await?;
                let found = reply["neighbours"].as_array().context("/search gave no neighbours")?;
                let neighbour = |one: &Value| {
                    let id = ItemId::new(one["id"].as_str()?).ok()?;
                    let metadata = Metadata::from_value(&one["metadata"]).ok()?;
                    Some(Neighbour { id, score: one["score"].as_f64()? as f32, metadata, vector: None })
                };
                let found = found
                    .iter()
                    .map(|one| neighbour(one).context("/search gave something that is no neighbour"));
                found.collect()
            }
        }
    }

    async fn search_remotely(&self, client: &Client, asked: Asked) -> anyhow::Result<Value> {
        let Asked { mut near, far, k, filter, min_score, diversity } = asked;
        let (k, diversity) = (k.to_string(), diversity.to_string());
        let min_score = min_score.map(|score| score.to_string());
        let mut query = vec![("collection", self.collection.as_str()), ("k", &k), ("diversity", &diversity)];
        query.extend(filter.as_deref().map(|filter| ("filter", filter)));
        query.extend(min_score.as_deref().map(|score| ("min_score", score)));
        if let (1, true) = (near.len(), far.is_empty()) {
            return client.post_picture("/search", &query, near.pop().unwrap_or_default()).await;
        }
        let images = |pictures: &[Bytes]| -> Vec<Value> {
            pictures.iter().map(|bytes| serde_json::json!({ "image": STANDARD.encode(bytes) })).collect()
        };
        let body = serde_json::json!({ "positive": images(&near), "negative": images(&far) });
        client.post_json("/search", &query, &body).await
    }

    /// Lets go of the data folder.
    ///
    /// # Errors
    /// When the store cannot be closed.
    pub async fn close(self) -> anyhow::Result<()> {
        if let Place::Local { embedder, store, .. } = self.place {
            tokio::task::spawn_blocking(move || embedder.close()).await?;
            store.close().await?;
        }
        Ok(())
    }
}

/// Items as lines of JSON.
fn as_lines(files: &[(String, Bytes)]) -> String {
    let line = |(id, bytes): &(String, Bytes)| {
        let image = STANDARD.encode(bytes);
        serde_json::json!({ "id": id, "image": image }).to_string() + "\n"
    };
    files.iter().map(line).collect()
}
