//! The target of a search: what it asks to be near to.

use std::sync::Arc;

use futures::future::try_join_all;
use latentd_model::{Contract, Embedding, ImageBytes};

use super::input::{Inputs, embed_inputs, image_from_text};
use super::problem::Problem;
use super::search::{SearchBody, SearchExample};
use super::stored::{self, unknown_item};
use crate::admission::Permit;
use crate::app::App;
use crate::store::{CollectionName, ItemId, StoreError};

/// Examples of one kind of one search, at most.
const MOST: usize = 64;

/// What is near to what.
#[derive(Clone)]
pub enum Target {
    /// An item.
    Item(ItemId),
    /// A picture.
    Picture(ImageBytes),
    /// A vector.
    Vector(Embedding, Contract),
    /// What is near to the first and far from the second.
    Several(Vec<Target>, Vec<Target>),
}

impl Target {
    /// The items that it names.
    pub fn items(&self) -> Vec<ItemId> {
        match self {
            Self::Item(id) => vec![id.clone()],
            Self::Several(near, far) => near.iter().chain(far).flat_map(Self::items).collect(),
            Self::Picture(_) | Self::Vector(..) => Vec::new(),
        }
    }
}

/// The problem of a search that asks for nothing, or for too much.
pub fn no_target() -> Problem {
    let detail = "a search is for exactly one of \"id\", \"image\", \"inputs\" (of one picture), \"vector\" (with its \"contract\") and \"positive\" (1 to 64 of them, with at most 64 \"negative\")";
    Problem::bad_request("invalid_search", detail)
}

/// What a body asks for.
pub fn target(body: SearchBody) -> Result<Target, Problem> {
    let SearchBody { id, image, inputs, vector, contract, positive, negative, .. } = body;
    if let Some(positive) = positive {
        let negative = negative.unwrap_or_default();
        let alone = id.is_none() && image.is_none() && inputs.is_none() && vector.is_none();
        if !alone || positive.is_empty() || positive.len().max(negative.len()) > MOST {
            return Err(no_target());
        }
        let all = |examples: Vec<SearchExample>| -> Result<Vec<Target>, Problem> {
            examples.into_iter().map(|example| one(example, contract)).collect()
        };
        return Ok(Target::Several(all(positive)?, all(negative)?));
    }
    match (id, image, inputs, vector, negative) {
        (None, None, Some(inputs), None, None) if inputs.len() == 1 => {
            Ok(Target::Picture(image_from_text(&inputs[0].image)?))
        }
        (id, image, None, vector, None) => one(SearchExample { id, image, vector }, contract),
        _ => Err(no_target()),
    }
}

fn one(example: SearchExample, contract: Option<Contract>) -> Result<Target, Problem> {
    match example {
        SearchExample { id: Some(id), image: None, vector: None } => Ok(Target::Item(ItemId::new(&id)?)),
        SearchExample { id: None, image: Some(image), vector: None } => {
            Ok(Target::Picture(image_from_text(&image)?))
        }
        SearchExample { id: None, image: None, vector: Some(vector) } => {
            let (vector, contract) = stored::vector(vector, contract)?;
            Ok(Target::Vector(vector, contract))
        }
        _ => Err(no_target()),
    }
}

/// The vector of what is searched for.
pub async fn resolve(
    app: &App,
    collection: &CollectionName,
    target: Target,
    permit: Arc<Permit>,
) -> Result<(Embedding, Contract), Problem> {
    let Target::Several(near, far) = target else { return single(app, collection, target, permit).await };
    let all = |targets: Vec<Target>| {
        try_join_all(targets.into_iter().map(|target| single(app, collection, target, permit.clone())))
    };
    let (near, far) = futures::try_join!(all(near), all(far))?;
    let contract = near.first().ok_or_else(no_target)?.1;
    let mut sum = vec![0f32; near[0].0.dim()];
    for (sign, vectors) in [(1.0, &near), (-1.0, &far)] {
        let weight = sign / vectors.len().max(1) as f32;
        for (vector, other) in vectors {
            if *other != contract {
                let (collection_contract, vector_contract) = (contract, *other);
                let collection = collection.clone();
                return Err(StoreError::ContractMismatch {
                    collection,
                    collection_contract,
                    vector_contract,
                }
                .into());
            }
            if vector.dim() != sum.len() {
                return Err(no_target());
            }
            sum.iter_mut().zip(vector.as_slice()).for_each(|(sum, value)| *sum += weight * value);
        }
    }
    let nowhere = |_| Problem::bad_request("invalid_search", "positive and negative cancel each other out");
    Ok((Embedding::from_unnormalised(sum).map_err(nowhere)?, contract))
}

async fn single(
    app: &App,
    collection: &CollectionName,
    target: Target,
    permit: Arc<Permit>,
) -> Result<(Embedding, Contract), Problem> {
    match target {
        Target::Vector(vector, contract) => Ok((vector, contract)),
        Target::Several(..) => Err(no_target()),
        Target::Item(id) => {
            let item = app.store.get(collection.clone(), id.clone()).await?;
            let item = item.ok_or_else(|| unknown_item(collection, &id))?;
            let vector = item.vector.ok_or_else(Problem::internal)?;
            Ok((vector, item.contract))
        }
        Target::Picture(image) => {
            let embedder = app.embedder();
            let inputs = Inputs { images: vec![Ok(image)], single: true, permit };
            let embedded = embed_inputs(&embedder, inputs).await?.into_iter().next();
            let embedded = embedded.ok_or_else(Problem::internal)??;
            Ok((embedded.embedding, embedder.artefact().contract()))
        }
    }
}
