//! Given: a picture as a request gives it, and the file of it, fetched where it is elsewhere.

use std::sync::Arc;

use futures::StreamExt;
use latentd_model::ImageBytes;

use super::input::{Input, ItemError};
use super::problem::Problem;
use crate::admission::Permit;
use crate::app::App;
use crate::fetch::FetchError;

/// A picture as a request gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// The file itself.
    File(ImageBytes),
    /// Where it is.
    Url(String),
}

/// The files of pictures, fetching those that are elsewhere, and a permit for them all.
///
/// # Errors
/// When the server is full; that a picture cannot be had is an inner error.
pub async fn fetch_all(
    app: &App,
    given: Vec<Result<Given, ItemError>>,
    body: Arc<Permit>,
) -> Result<(Vec<Input>, Arc<Permit>), Problem> {
    if given.iter().all(|given| matches!(given, Ok(Given::File(_)) | Err(_))) {
        let file = |given| match given {
            Given::File(image) => Ok(image),
            Given::Url(_) => Err(url_inputs_disabled()),
        };
        return Ok((given.into_iter().map(|given| given.and_then(file)).collect(), body));
    }
    let fetches = given.into_iter().map(|given| fetch(app, given));
    let mut all = app.admission.admit(0, 0)?;
    all.keep(body);
    // No more than half of what is fetched at once is for one request, or addresses that do not answer keep others out.
    let share = (app.config.url_concurrency / 2).max(1);
    let mut images = Vec::new();
    let mut fetched = futures::stream::iter(fetches).buffered(share);
    while let Some(fetched) = fetched.next().await {
        images.push(fetched.map(|(image, permit)| {
            all.absorb(permit);
            image
        }));
    }
    Ok((images, Arc::new(all)))
}

async fn fetch(
    app: &App,
    given: Result<Given, ItemError>,
) -> Result<(ImageBytes, Option<Permit>), ItemError> {
    match given? {
        Given::File(image) => Ok((image, None)),
        Given::Url(url) => {
            let fetcher = app.fetcher.as_ref().ok_or_else(url_inputs_disabled)?;
            let (image, permit) = fetcher.fetch(&url).await?;
            Ok((image, Some(permit)))
        }
    }
}

/// The file of the one picture of a request, fetched where it is elsewhere, and a permit for it.
///
/// # Errors
/// When it cannot be had, or the server is full.
pub async fn fetch_one(
    app: &App,
    given: Given,
    body: Arc<Permit>,
) -> Result<(ImageBytes, Arc<Permit>), Problem> {
    let (mut images, permit) = fetch_all(app, vec![Ok(given)], body).await?;
    Ok((images.pop().ok_or_else(Problem::internal)??, permit))
}

fn url_inputs_disabled() -> ItemError {
    let message = "this server does not fetch addresses: send the picture itself as base64 or a data URI, or start the server with --url-inputs";
    ItemError::new("url_inputs_disabled", message)
}

impl From<FetchError> for ItemError {
    fn from(error: FetchError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
