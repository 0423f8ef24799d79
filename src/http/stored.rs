//! What the resources of the store share: their errors as problems, and items as JSON.

use axum::http::StatusCode;
use latentd_model::{Contract, Embedding, OutputSpec};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::input::ItemError;
use super::json;
use super::problem::Problem;
use crate::indexer::IndexError;
use crate::store::{CollectionName, InvalidValue, Item, ItemId, Metadata, StoreError};

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let (code, detail) = (error.code(), error.for_clients());
        let status = match &error {
            StoreError::ContractMismatch { .. } | StoreError::Led { .. } => StatusCode::CONFLICT,
            StoreError::Invalid(InvalidValue::Bulk(_)) => StatusCode::PAYLOAD_TOO_LARGE,
            StoreError::DimensionMismatch { .. } | StoreError::Invalid(_) | StoreError::Filter(_) => {
                StatusCode::BAD_REQUEST
            }
            StoreError::UnknownCollection(_) => StatusCode::NOT_FOUND,
            StoreError::Busy { .. }
            | StoreError::Closed
            | StoreError::Changing
            | StoreError::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            StoreError::Unsupported { .. } => StatusCode::NOT_IMPLEMENTED,
            StoreError::Full { .. } => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(code, %error, "the store failed");
        }
        let problem = Self::new(status, code, detail);
        match error {
            StoreError::ContractMismatch { collection_contract, vector_contract, .. } => problem
                .with("collection_contract", collection_contract.to_string())
                .with("vector_contract", vector_contract.to_string()),
            StoreError::Busy { .. } | StoreError::Changing => {
                problem.retry_after(std::time::Duration::from_secs(1))
            }
            StoreError::Unavailable { .. } => problem.retry_after(std::time::Duration::from_secs(5)),
            _ => problem,
        }
    }
}

impl From<InvalidValue> for Problem {
    fn from(error: InvalidValue) -> Self {
        StoreError::from(error).into()
    }
}

impl From<IndexError> for Problem {
    fn from(error: IndexError) -> Self {
        match error {
            IndexError::Embed(error) => error.into(),
            error @ IndexError::Length { .. } => Self::bad_request(error.code(), error.to_string()),
            IndexError::Store(error) => error.into(),
        }
    }
}

/// An error of one input, where that input is the whole request.
impl From<ItemError> for Problem {
    fn from(error: ItemError) -> Self {
        let status = match error.code.as_ref() {
            "overloaded" | "shutting_down" => StatusCode::SERVICE_UNAVAILABLE,
            "url_too_large" => StatusCode::PAYLOAD_TOO_LARGE,
            "url_unresolvable" | "url_unreachable" | "url_status" | "url_redirects" | "url_timeout" => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.code, error.message)
    }
}

impl From<IndexError> for ItemError {
    fn from(error: IndexError) -> Self {
        let message = match &error {
            IndexError::Embed(error) => error.to_string(),
            IndexError::Length { .. } => error.to_string(),
            IndexError::Store(error) => error.for_clients(),
        };
        Self::new(error.code(), message)
    }
}

impl From<InvalidValue> for ItemError {
    fn from(error: InvalidValue) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// The collection that a request names, or `default`.
///
/// # Errors
/// `invalid_collection`.
pub fn collection(name: Option<&str>) -> Result<CollectionName, Problem> {
    Ok(name.map(CollectionName::new).transpose()?.unwrap_or_default())
}

/// 404 of an item.
#[must_use]
pub fn unknown_item(collection: &CollectionName, id: &ItemId) -> Problem {
    Problem::not_found("unknown_item", format!("there is no item {id:?} in collection {collection:?}"))
}

/// The vector of a request: any non-zero one, made to norm 1.
///
/// # Errors
/// `invalid_vector`, or `missing_contract`.
pub fn vector(values: Vec<f32>, contract: Option<Contract>) -> Result<(Embedding, Contract), ItemError> {
    let Some(contract) = contract else {
        let message =
            "a \"vector\" needs the \"contract\" of the encoder that made it, as /embed and /info tell it";
        return Err(ItemError::new("missing_contract", message));
    };
    if values.len() > OutputSpec::MAX_DIM {
        let message = format!("a vector has at most {} numbers", OutputSpec::MAX_DIM);
        return Err(ItemError::new("invalid_vector", message));
    }
    let already = Embedding::from_normalised(values.clone());
    let vector = already.or_else(|_| Embedding::from_unnormalised(values));
    let vector = vector.map_err(|error| ItemError::new("invalid_vector", error.to_string()))?;
    Ok((vector, contract))
}

/// The numbers of a vector in JSON, of too many one more than there may be, each rounded to f32: one that f32 cannot
/// hold becomes infinite, so that it is refused as that item's vector and does not break the JSON around it.
///
/// # Errors
/// When there are no numbers.
pub fn components<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<f32>>, D::Error> {
    struct Component(f32);

    impl<'de> Deserialize<'de> for Component {
        #[expect(clippy::cast_possible_truncation, reason = "rounded, as the vector's precision is")]
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            Ok(Self(f64::deserialize(deserializer)? as f32))
        }
    }

    let numbers = json::at_most::<_, Component, { OutputSpec::MAX_DIM }>(deserializer)?;
    Ok(numbers.map(|numbers| numbers.into_iter().map(|Component(number)| number).collect()))
}

/// What a reply holds beside ids: `vector`, `metadata`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Include {
    /// The vector.
    Vector,
    /// The metadata.
    Metadata,
}

/// Reads `include=vector,metadata`.
///
/// # Errors
/// `invalid_query`.
pub fn include(text: &str) -> Result<Vec<Include>, Problem> {
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    words
        .map(|word| match word {
            "vector" => Ok(Include::Vector),
            "metadata" => Ok(Include::Metadata),
            other => {
                let detail = format!(
                    "include takes \"vector\" and \"metadata\", with a comma between them, not {other:?}"
                );
                Err(Problem::bad_request("invalid_query", detail))
            }
        })
        .collect()
}

/// Bytes of JSON of a vector's number, about.
pub const NUMBER: usize = 12;
/// Bytes of JSON of an item beside its id, metadata and vector, about.
pub const BESIDE: usize = 320;

/// An item.
#[derive(Debug, Serialize, ToSchema)]
pub struct ItemView {
    /// Its id.
    #[schema(example = "shirts/red 1.jpg")]
    pub id: String,
    /// The contract of its vector.
    #[schema(value_type = String, example = "0123456789abcdef")]
    pub contract: Contract,
    /// What is kept with it.
    #[schema(value_type = Object)]
    pub metadata: Metadata,
    /// SHA-256 of the picture file, or of the vector's numbers.
    pub content_hash: String,
    /// Whether `/items/{id}/image` has a picture.
    pub has_image: bool,
    /// Number of the write that made it so; later writes have larger numbers.
    pub seq: u64,
    /// When the id was first written.
    #[schema(value_type = String, format = DateTime)]
    pub created: String,
    /// When it was last written.
    #[schema(value_type = String, format = DateTime)]
    pub updated: String,
    /// The vector, of norm 1, when it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vector: Option<Vec<f32>>,
}

impl ItemView {
    /// Of this item.
    #[must_use]
    pub fn new(item: Item, with_vector: bool) -> Self {
        let vector = item.vector.filter(|_| with_vector).map(|vector| vector.as_slice().to_vec());
        Self {
            id: item.id.to_string(),
            contract: item.contract,
            metadata: item.metadata,
            content_hash: item.content_hash.to_string(),
            has_image: item.has_thumbnail,
            seq: item.seq,
            created: item.created.to_string(),
            updated: item.updated.to_string(),
            vector,
        }
    }

    /// Bytes of its JSON, about.
    #[must_use]
    pub fn size(&self) -> usize {
        let vector = self.vector.as_ref().map_or(0, |vector| vector.len() * NUMBER);
        self.id.len() + self.metadata.as_str().len() + vector + BESIDE
    }
}
