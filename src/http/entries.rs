//! Entries: the items of a request body, in any of its forms.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use latentd_model::{Contract, Embedding, ImageBytes};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::extract::parse_json;
use super::given::{Given, fetch_all};
use super::input::{ItemError, Part, image_from_text};
use super::json::{self, AtMost, Members};
use super::problem::{Problem, clipped};
use super::stored;
use crate::admission::Permit;
use crate::app::App;
use crate::indexer::{Entry, Source};
use crate::store::{ItemId, MAX_BULK, Metadata};

/// Name of the part or field that holds metadata.
pub const METADATA: &str = "metadata";

/// The metadata of a form's files, as it is written, by their ids.
pub type MetadataById = HashMap<String, Box<RawValue>>;

/// An item in JSON: an `image`, a `url`, or a `vector` with its `contract`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ItemBody {
    /// Its id; only where the address has none.
    #[serde(default)]
    pub id: Option<String>,
    /// The picture file in base64, or as a data URI.
    #[serde(default)]
    pub image: Option<String>,
    /// Where to fetch the picture file from; see the inputs of /embed.
    #[serde(default)]
    pub url: Option<String>,
    /// A vector, in place of a picture.
    #[serde(default, deserialize_with = "stored::components")]
    pub vector: Option<Vec<f32>>,
    /// The contract of the encoder that made the vector.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub contract: Option<Contract>,
    /// What is kept with it: an object of at most 64 KiB as compact text, 16 levels and 1024 values.
    #[serde(default, deserialize_with = "json::tree")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
}

/// Several items in JSON.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ItemBodies<'a> {
    /// The items, in order; at most 10,000.
    // As they are written, so that one may be malformed without making the others so.
    #[serde(borrow)]
    #[schema(value_type = Vec<ItemBody>)]
    items: AtMost<&'a RawValue, MAX_BULK>,
}

fn invalid_item(error: &serde_json::Error) -> ItemError {
    ItemError::new("invalid_json", format!("the item is not the JSON this route takes: {error}"))
}

/// What an item is to be made from, as a request gives it.
#[derive(Debug)]
pub enum Content {
    /// A picture.
    Picture(Given),
    /// A vector.
    Vector(Embedding, Contract),
}

/// An item as a request gives it.
pub struct Draft {
    /// Its id.
    pub id: ItemId,
    /// What it is made from.
    pub content: Content,
    /// What is kept with it.
    pub metadata: Metadata,
}

/// One entry of a bulk request, or why it is none, with its id where there is one.
pub struct BulkEntry<T = Draft> {
    /// The id as it was given.
    pub id: Option<String>,
    /// The entry.
    pub entry: Result<T, ItemError>,
}

impl BulkEntry {
    /// Whether it is to be made from a picture.
    pub fn is_picture(&self) -> bool {
        matches!(&self.entry, Ok(draft) if matches!(draft.content, Content::Picture(_)))
    }
}

/// The entries with their pictures, fetching those that are elsewhere, and a permit for them all.
///
/// # Errors
/// When the server is full; that a picture cannot be had is an inner error.
pub async fn fetched(
    app: &App,
    bulk: Vec<BulkEntry>,
    body: Arc<Permit>,
) -> Result<(Vec<BulkEntry<Entry>>, Arc<Permit>), Problem> {
    let (mut pictures, mut rest) = (Vec::new(), Vec::with_capacity(bulk.len()));
    for BulkEntry { id, entry } in bulk {
        rest.push((
            id,
            entry.map(|Draft { id, content, metadata }| match content {
                Content::Vector(vector, contract) => (id, Some(Source::Vector(vector, contract)), metadata),
                Content::Picture(given) => {
                    pictures.push(Ok(given));
                    (id, None, metadata)
                }
            }),
        ));
    }
    let (pictures, permit) = fetch_all(app, pictures, body).await?;
    let mut pictures = pictures.into_iter();
    let entries = rest.into_iter().map(|(given_id, entry)| {
        let entry = entry.and_then(|(id, source, metadata)| {
            let missing = || Err(ItemError::new("internal_error", "a picture got lost"));
            let source = match source {
                Some(vector) => vector,
                None => Source::Picture(pictures.next().unwrap_or_else(missing)?),
            };
            Ok(Entry { id, source, metadata })
        });
        BulkEntry { id: given_id, entry }
    });
    Ok((entries.collect(), permit))
}

/// What an item's JSON is made from, and its metadata.
///
/// # Errors
/// Codes of the items' parts, or `invalid_item`.
pub fn content(body: ItemBody) -> Result<(Content, Metadata), ItemError> {
    let metadata = body.metadata.as_ref().map(Metadata::from_value).transpose()?.unwrap_or_default();
    let content = match (body.image, body.url, body.vector, body.contract) {
        (Some(image), None, None, None) => Content::Picture(Given::File(image_from_text(&image)?)),
        (None, Some(url), None, None) => Content::Picture(Given::Url(url)),
        (None, None, Some(values), contract) => {
            let (vector, contract) = stored::vector(values, contract)?;
            Content::Vector(vector, contract)
        }
        _ => {
            let message = "an item has an \"image\", a \"url\", or a \"vector\" with its \"contract\"";
            return Err(ItemError::new("invalid_item", message));
        }
    };
    Ok((content, metadata))
}

/// What the JSON of one item, whose id stands in the address, is made from, and its metadata.
///
/// # Errors
/// As [`content`], and `invalid_json`.
pub fn one_of_json(bytes: &[u8]) -> Result<(Content, Metadata), Problem> {
    let body: ItemBody = parse_json(bytes)?;
    if body.id.is_some() {
        let detail = "the id stands in the address; leave \"id\" out of the body";
        return Err(Problem::bad_request("invalid_item", detail));
    }
    Ok(content(body)?)
}

fn bulk_entry(body: Result<ItemBody, ItemError>) -> BulkEntry {
    let mut body = match body {
        Ok(body) => body,
        Err(error) => return BulkEntry { id: None, entry: Err(error) },
    };
    let id = body.id.take();
    let entry = (|| {
        let text = id.as_deref().ok_or_else(|| ItemError::new("invalid_item", "the item has no \"id\""))?;
        let id = ItemId::new(text)?;
        let (content, metadata) = content(body)?;
        Ok(Draft { id, content, metadata })
    })();
    BulkEntry { id: id.map(clipped), entry }
}

/// The entries of `{"items":[…]}`.
///
/// # Errors
/// `invalid_json`, `too_many_items`.
pub fn of_json(bytes: &[u8]) -> Result<Vec<BulkEntry>, Problem> {
    let ItemBodies { items: AtMost(items) } = parse_json(bytes)?;
    check_count(items.len())?;
    Ok(items.into_iter().map(|item| of_line(item.get().as_bytes())).collect())
}

/// The entries of lines of JSON; empty lines are left out.
///
/// # Errors
/// `too_many_items`.
pub fn of_ndjson(bytes: &[u8]) -> Result<Vec<BulkEntry>, Problem> {
    let lines = bytes.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let mut entries = Vec::new();
    for line in lines {
        check_count(entries.len() + 1)?;
        entries.push(of_line(line));
    }
    Ok(entries)
}

/// The entry of a line of JSON.
pub fn of_line(line: &[u8]) -> BulkEntry {
    bulk_entry(serde_json::from_slice(line).map_err(|error| invalid_item(&error)))
}

/// In place of an entry that was too large to be read.
pub fn too_large() -> BulkEntry {
    let error = ItemError::new("item_too_large", "the item is larger than is taken, and was left out");
    BulkEntry { id: None, entry: Err(error) }
}

fn check_count(count: usize) -> Result<(), Problem> {
    if count > MAX_BULK { Err(crate::store::InvalidValue::Bulk(count).into()) } else { Ok(()) }
}

/// The entries of a form: each file is an item, its id the file's name, or the part's where the file has none.
/// The field `metadata` is an object of the metadata by id.
///
/// # Errors
/// `invalid_metadata`, `unexpected_field`.
pub fn of_form(files: Vec<Part>, fields: Vec<Part>) -> Result<Vec<BulkEntry>, Problem> {
    let (files, metadata) = split_metadata(files, fields)?;
    let mut metadata = metadata.map(|text| metadata_by_id(&text)).transpose()?.unwrap_or_default();
    let entries: Vec<BulkEntry> = files.into_iter().map(|file| of_part(file, &mut metadata)).collect();
    metadata.keys().next().map_or(Ok(entries), |id| Err(no_such_file(id)))
}

/// Reads the field `metadata` of a form of several files.
///
/// # Errors
/// `invalid_metadata`.
pub fn metadata_by_id(text: &[u8]) -> Result<MetadataById, Problem> {
    serde_json::from_slice(text).map(|Members::<MAX_BULK>(by_id)| by_id).map_err(|error| {
        let detail =
            format!("the field \"metadata\" must be a JSON object that has an object for each id: {error}");
        Problem::bad_request("invalid_metadata", detail)
    })
}

/// The entry of a form's file, whose metadata is taken out of `metadata`.
pub fn of_part(file: Part, metadata: &mut MetadataById) -> BulkEntry {
    let id = file.file_name.or(file.name);
    let kept = id.as_ref().and_then(|id| metadata.remove(id));
    let entry = (|| {
        let text = id.as_deref().ok_or_else(|| ItemError::new("invalid_item", "the part has no name"))?;
        let content = Content::Picture(Given::File(ImageBytes(file.bytes)));
        let metadata = kept.map(|kept| Metadata::from_json(kept.get())).transpose()?.unwrap_or_default();
        Ok(Draft { id: ItemId::new(text)?, content, metadata })
    })();
    BulkEntry { id: id.map(clipped), entry }
}

/// The problem of metadata whose file did not come.
pub fn no_such_file(id: &str) -> Problem {
    let detail = format!("the field \"metadata\" has an entry {id:?}, but no file has that name");
    Problem::bad_request("invalid_metadata", detail)
}

/// The problem of a field that is no file.
pub fn no_file(name: Option<&str>) -> Problem {
    let detail = format!(
        "the field {:?} is neither a file nor \"metadata\": give each picture's part a file name (curl: -F 'image=@picture.jpg')",
        name.unwrap_or("")
    );
    Problem::bad_request("unexpected_field", detail)
}

/// The one picture of a form, and its metadata.
///
/// # Errors
/// `invalid_metadata`, `unexpected_field`, `no_inputs`, `too_many_images`.
pub fn one_of_form(files: Vec<Part>, fields: Vec<Part>) -> Result<(Content, Metadata), Problem> {
    let (mut files, metadata) = split_metadata(files, fields)?;
    let metadata = match metadata {
        None => Metadata::default(),
        Some(text) => Metadata::from_json(&String::from_utf8_lossy(&text))?,
    };
    match (files.pop(), files.is_empty()) {
        (Some(file), true) => Ok((Content::Picture(Given::File(ImageBytes(file.bytes))), metadata)),
        (None, _) => Err(Problem::bad_request("no_inputs", "the form holds no picture file")),
        (Some(_), false) => {
            let detail = "this address takes one picture: send several to POST /items";
            Err(Problem::bad_request("too_many_images", detail))
        }
    }
}

fn split_metadata(files: Vec<Part>, fields: Vec<Part>) -> Result<(Vec<Part>, Option<Bytes>), Problem> {
    let mut metadata = None;
    let mut pictures = Vec::with_capacity(files.len());
    for part in files {
        // A client may give the part a media type of its own, which makes it look like a file.
        if part.name.as_deref() == Some(METADATA) { metadata = Some(part.bytes) } else { pictures.push(part) }
    }
    for field in fields {
        match field.name.as_deref() {
            Some(METADATA) => metadata = Some(field.bytes),
            name => return Err(no_file(name)),
        }
    }
    Ok((pictures, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn codes(entries: Vec<BulkEntry>) -> Vec<(Option<String>, Result<(), String>)> {
        let code = |entry: Result<Draft, ItemError>| entry.map(drop).map_err(|error| error.code.into_owned());
        entries.into_iter().map(|BulkEntry { id, entry }| (id, code(entry))).collect()
    }

    #[test]
    fn each_item_fails_alone() {
        let lines = br#"{"id":"a","vector":[1,2],"contract":"0123456789abcdef"}
{"id":"b","vector":[1,2]}

{"id":"c"}
{"id":"d","image":"?"}
{"id":"..","image":"aGk="}
{"image":"aGk="}
{"id":"e","vector":[0,0],"contract":"0123456789abcdef"}
{"id":"f","vector":[1e300],"contract":"0123456789abcdef"}
{"id":"g","image":"aGk=","metadata":[]}
{"id":"h","image":"aGk=","colour":1}
{"id":"i","url":"http://x/"}
{"id":"j","url":"http://x/","image":"aGk="}
{"id":
"#;
        let expected = [
            (Some("a"), "ok"),
            (Some("b"), "missing_contract"),
            (Some("c"), "invalid_item"),
            (Some("d"), "invalid_base64"),
            (Some(".."), "invalid_id"),
            (None, "invalid_item"),
            (Some("e"), "invalid_vector"),
            (Some("f"), "invalid_vector"),
            (Some("g"), "invalid_metadata"),
            (None, "invalid_json"),
            (Some("i"), "ok"),
            (Some("j"), "invalid_item"),
            (None, "invalid_json"),
        ];
        let found = codes(of_ndjson(lines).unwrap());
        let found: Vec<_> = found
            .iter()
            .map(|(id, outcome)| (id.as_deref(), outcome.as_ref().map_or_else(String::as_str, |()| "ok")))
            .collect();
        assert_eq!(found, expected);
        let whole = String::from_utf8_lossy(lines)
            .trim()
            .lines()
            .filter(|l| l.len() > 8)
            .collect::<Vec<_>>()
            .join(",");
        let json = codes(of_json(format!("{{\"items\":[{whole}]}}").as_bytes()).unwrap());
        assert_eq!(json.len(), 12);
        assert_eq!(of_json(b"{\"items\":[{]}").map(codes).unwrap_err().code, "invalid_json");
    }

    #[test]
    fn forms_name_their_items() {
        let part = |name: &str, file: Option<&str>, bytes: &'static str| Part {
            name: Some(name.to_owned()),
            file_name: file.map(str::to_owned),
            bytes: Bytes::from(bytes),
        };
        let files = || vec![part("x", Some("a.jpg"), "1"), part("b", None, "2")];
        let entries = of_form(files(), vec![part("metadata", None, r#"{"b":{"n":1}}"#)]).unwrap();
        assert_eq!(entries[1].entry.as_ref().unwrap().metadata.as_str(), r#"{"n":1}"#);
        assert_eq!(codes(entries), [(Some("a.jpg".into()), Ok(())), (Some("b".into()), Ok(()))]);
        let refusal = |fields| of_form(files(), fields).map(codes).unwrap_err().code;
        assert_eq!(refusal(vec![part("metadata", None, r#"{"c":{}}"#)]), "invalid_metadata");
        assert_eq!(refusal(vec![part("metadata", None, "[]")]), "invalid_metadata");
        assert_eq!(refusal(vec![part("title", None, "x")]), "unexpected_field");
        assert_eq!(one_of_form(files(), vec![]).unwrap_err().code, "too_many_images");
        assert_eq!(one_of_form(vec![], vec![]).unwrap_err().code, "no_inputs");
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_parsers(bytes: Vec<u8>) {
            let _ = (of_json(&bytes).map(codes), of_ndjson(&bytes).map(codes));
        }
    }
}
