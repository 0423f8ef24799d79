//! The target of a search: what it asks to be near to, and far from.

use std::sync::Arc;

use futures::future::try_join_all;
use latentd_model::{Contract, Embedding, ImageBytes};

use super::given::{Given, fetch_all};
use super::input::{Inputs, embed_inputs, image_from_text};
use super::problem::Problem;
use super::search::{SearchBody, SearchExample};
use super::stored::{self, unknown_item};
use crate::admission::Permit;
use crate::app::App;
use crate::store::{CollectionName, ItemId, examples};
use crate::trace;

/// Examples of one kind of one search, at most.
pub const MOST: usize = 64;

/// What a search is for: one example, or several; pictures are first as they were given, then their files.
#[derive(Debug, Clone)]
pub struct Target<P = ImageBytes> {
    near: Vec<Example<P>>,
    far: Vec<Example<P>>,
}

/// Something to be near to or far from.
#[derive(Debug, Clone)]
pub enum Example<P = ImageBytes> {
    /// An item.
    Item(ItemId),
    /// A picture.
    Picture(P),
    /// A vector.
    Vector(Embedding, Contract),
}

impl<P> Target<P> {
    /// Of one picture.
    pub fn picture(picture: P) -> Self {
        Self { near: vec![Example::Picture(picture)], far: Vec::new() }
    }

    fn examples(&self) -> impl Iterator<Item = &Example<P>> {
        self.near.iter().chain(&self.far)
    }

    /// The items that it names.
    pub fn items(&self) -> Vec<ItemId> {
        let item = |example: &Example<P>| match example {
            Example::Item(id) => Some(id.clone()),
            Example::Picture(_) | Example::Vector(..) => None,
        };
        self.examples().filter_map(item).collect()
    }

    /// How many pictures are to be embedded for it.
    pub fn pictures(&self) -> usize {
        self.examples().filter(|example| matches!(example, Example::Picture(_))).count()
    }

    /// Whether another encoder would make other vectors of it.
    pub fn depends_on_encoder(&self) -> bool {
        self.examples().any(|example| !matches!(example, Example::Vector(..)))
    }

    /// The same with other pictures, in order.
    fn with<Q>(self, pictures: impl IntoIterator<Item = Q>) -> Option<Target<Q>> {
        let mut pictures = pictures.into_iter();
        let mut with = |example| {
            Some(match example {
                Example::Item(id) => Example::Item(id),
                Example::Picture(_) => Example::Picture(pictures.next()?),
                Example::Vector(vector, contract) => Example::Vector(vector, contract),
            })
        };
        let near = self.near.into_iter().map(&mut with).collect::<Option<_>>()?;
        Some(Target { near, far: self.far.into_iter().map(with).collect::<Option<_>>()? })
    }

    fn given(&self) -> Vec<P>
    where
        P: Clone,
    {
        let picture = |example: &Example<P>| match example {
            Example::Picture(picture) => Some(picture.clone()),
            Example::Item(_) | Example::Vector(..) => None,
        };
        self.examples().filter_map(picture).collect()
    }
}

impl Target<Given> {
    /// With the files of its pictures, fetching those that are elsewhere, and a permit for them all.
    ///
    /// # Errors
    /// When one cannot be had, or the server is full.
    pub async fn fetched(self, app: &App, body: Arc<Permit>) -> Result<(Target, Arc<Permit>), Problem> {
        let given = self.given().into_iter().map(Ok).collect();
        let (images, permit) = fetch_all(app, given, body).await?;
        let images: Vec<ImageBytes> = images.into_iter().collect::<Result<_, _>>()?;
        Ok((self.with(images).ok_or_else(Problem::internal)?, permit))
    }
}

/// The problem of a search that asks for nothing, or for too much.
pub fn no_target() -> Problem {
    let detail = "a search is for exactly one of \"id\", \"image\", \"url\", \"inputs\" (of one picture), \"vector\" (with its \"contract\") and \"positive\" (1 to 64 of them, with at most 64 \"negative\")";
    Problem::bad_request("invalid_search", detail)
}

/// What a JSON body asks for, in it and in its one picture of `inputs`.
///
/// # Errors
/// `invalid_search`, and the codes of its parts.
pub fn of_json(body: SearchBody) -> Result<Target<Given>, Problem> {
    let SearchBody { id, image, url, inputs, vector, contract, positive, negative, .. } = body;
    let one = SearchExample { id, image, url, vector };
    match (positive, negative, inputs, one.given()) {
        (Some(near), far, None, 0) => {
            let all = |examples: Vec<SearchExample>| -> Result<Vec<Example<Given>>, Problem> {
                examples.into_iter().map(|one| example(one, contract)).collect()
            };
            bounded(all(near)?, all(far.unwrap_or_default())?)
        }
        (None, None, None, 1) => Ok(Target { near: vec![example(one, contract)?], far: Vec::new() }),
        (None, None, Some(mut inputs), 0) if inputs.len() == 1 => {
            let input = inputs.pop().ok_or_else(no_target)?;
            let one = SearchExample { image: input.image, url: input.url, ..SearchExample::default() };
            Ok(Target { near: vec![example(one, contract)?], far: Vec::new() })
        }
        _ => Err(no_target()),
    }
}

/// What a form asks for: to be near to its pictures, but far from those of the name `negative`.
///
/// # Errors
/// `invalid_search`.
pub fn of_form(parts: Vec<super::input::Part>) -> Result<Target<Given>, Problem> {
    let (far, near): (Vec<_>, Vec<_>) =
        parts.into_iter().partition(|part| part.name.as_deref() == Some("negative"));
    let all = |parts: Vec<super::input::Part>| {
        parts.into_iter().map(|part| Example::Picture(Given::File(ImageBytes(part.bytes)))).collect()
    };
    bounded(all(near), all(far))
}

fn bounded(near: Vec<Example<Given>>, far: Vec<Example<Given>>) -> Result<Target<Given>, Problem> {
    if near.is_empty() || near.len().max(far.len()) > MOST {
        return Err(no_target());
    }
    Ok(Target { near, far })
}

fn example(one: SearchExample, contract: Option<Contract>) -> Result<Example<Given>, Problem> {
    match one {
        SearchExample { id: Some(id), image: None, url: None, vector: None } => {
            Ok(Example::Item(ItemId::new(&id)?))
        }
        SearchExample { id: None, image: Some(image), url: None, vector: None } => {
            Ok(Example::Picture(Given::File(image_from_text(&image)?)))
        }
        SearchExample { id: None, image: None, url: Some(url), vector: None } => {
            Ok(Example::Picture(Given::Url(url)))
        }
        SearchExample { id: None, image: None, url: None, vector: Some(vector) } => {
            let (vector, contract) = stored::vector(vector, contract)?;
            Ok(Example::Vector(vector, contract))
        }
        _ => Err(no_target()),
    }
}

/// The vector of what is searched for.
///
/// # Errors
/// An item that is not there, a picture that cannot be embedded, or examples that do not go together.
pub async fn resolve(
    app: &App,
    collection: &CollectionName,
    target: Target,
    permit: Arc<Permit>,
) -> Result<examples::Example, Problem> {
    let images = target.given().into_iter().map(Ok).collect::<Vec<_>>();
    let mut pictures = Vec::with_capacity(images.len());
    if !images.is_empty() {
        let embedder = app.embedder();
        let contract = embedder.artefact().contract();
        let inputs = Inputs { images, single: true, permit, held: None };
        for embedded in embed_inputs(&embedder, inputs).await? {
            pictures.push((embedded?.embedding, contract));
        }
    }
    let target = target.with(pictures).ok_or_else(Problem::internal)?;
    let all = |examples: Vec<Example<examples::Example>>| {
        try_join_all(examples.into_iter().map(|example| vector(app, collection, example)))
    };
    let (near, far) = futures::try_join!(all(target.near), all(target.far))?;
    Ok(examples::joined(collection, &near, &far)?)
}

async fn vector(
    app: &App,
    collection: &CollectionName,
    example: Example<examples::Example>,
) -> Result<examples::Example, Problem> {
    match example {
        Example::Vector(vector, contract) | Example::Picture((vector, contract)) => Ok((vector, contract)),
        Example::Item(id) => {
            let item = trace::part("store get", app.store.get(collection.clone(), id.clone())).await?;
            let item = item.ok_or_else(|| unknown_item(collection, &id))?;
            let vector = item.vector.ok_or_else(Problem::internal)?;
            Ok((vector, item.contract))
        }
    }
}
