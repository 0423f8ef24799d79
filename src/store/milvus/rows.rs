//! Rows: items as Milvus keeps them, a column for each field.

use std::collections::HashMap;

use latentd_model::{Contract, Embedding};

use super::fields;
use super::proto::{
    Bools, Column, FieldData, FieldSchema, Floats, Jsons, Longs, Pair, ScalarColumn, Scalars, Strings,
    Vectors, data_type,
};
use crate::store::{ContentHash, Item, ItemId, Metadata, NewItem, Timestamp};

/// The primary key.
pub const ID: &str = "id";
/// What searches compare.
pub const VECTOR: &str = "vector";
const METADATA: &str = "metadata";
/// The metadata laid flat for filters.
pub const FIELDS: &str = "fields";
const CONTENT_HASH: &str = "content_hash";
const SEQ: &str = "seq";
const CREATED: &str = "created";
const UPDATED: &str = "updated";
const HAS_THUMBNAIL: &str = "has_thumbnail";
const HAS_ORIGINAL: &str = "has_original";

/// The fields of an item but its vector.
pub const PLAIN: [&str; 8] = [ID, METADATA, CONTENT_HASH, SEQ, CREATED, UPDATED, HAS_THUMBNAIL, HAS_ORIGINAL];
/// What tells which state of an item it is, and what it can be embedded again from.
pub const STATE: [&str; 5] = [ID, CONTENT_HASH, SEQ, HAS_THUMBNAIL, HAS_ORIGINAL];
/// What a write must know of the item before it.
pub const KNOWN: [&str; 5] = [ID, CONTENT_HASH, CREATED, HAS_THUMBNAIL, HAS_ORIGINAL];

/// The fields of a collection of this dimension.
pub fn schema(dim: usize) -> Vec<FieldSchema> {
    let field = |name: &str, data_type, params: &[(&str, usize)]| FieldSchema {
        name: name.to_owned(),
        is_primary_key: name == ID,
        data_type,
        type_params: params.iter().map(|(key, value)| Pair::new(key, value)).collect(),
    };
    vec![
        field(ID, data_type::VARCHAR, &[("max_length", ItemId::MAX_BYTES)]),
        field(VECTOR, data_type::FLOAT_VECTOR, &[("dim", dim)]),
        field(METADATA, data_type::JSON, &[]),
        field(FIELDS, data_type::JSON, &[]),
        field(CONTENT_HASH, data_type::VARCHAR, &[("max_length", 64)]),
        field(SEQ, data_type::INT64, &[]),
        field(CREATED, data_type::INT64, &[]),
        field(UPDATED, data_type::INT64, &[]),
        field(HAS_THUMBNAIL, data_type::BOOL, &[]),
        field(HAS_ORIGINAL, data_type::BOOL, &[]),
    ]
}

/// An item with what its write adds.
pub struct Stamped<'a> {
    pub item: &'a NewItem,
    pub seq: u64,
    pub created: Timestamp,
    pub updated: Timestamp,
    /// What is kept of its picture.
    pub kept: Kept,
}

impl<'a> Stamped<'a> {
    /// A new item, with what it brings.
    pub fn new(item: &'a NewItem, seq: u64, created: Timestamp, updated: Timestamp) -> Self {
        let (thumbnail, original) = (item.thumbnail.is_some(), item.picture.is_some());
        let kept = Kept { content_hash: item.content_hash, thumbnail, original };
        Self { item, seq, created, updated, kept }
    }
}

/// Rows and bytes of one call.
const ROWS: usize = 1000;
const BYTES: usize = 8 << 20;

/// Rows cut into calls of bounded size.
pub fn calls<'a, 'b>(rows: &'b [Stamped<'a>]) -> Vec<&'b [Stamped<'a>]> {
    let (mut calls, mut from, mut bytes) = (Vec::new(), 0, 0);
    for (place, row) in rows.iter().enumerate() {
        let size = size(row.item);
        if place > from && (place - from == ROWS || bytes + size > BYTES) {
            calls.push(&rows[from..place]);
            (from, bytes) = (place, 0);
        }
        bytes += size;
    }
    if from < rows.len() {
        calls.push(&rows[from..]);
    }
    calls
}

/// Bytes of a row, about.
pub fn size(item: &NewItem) -> usize {
    4 * item.vector.dim() + 3 * item.metadata.as_str().len() + item.id.as_str().len() + 256
}

/// Rows as columns.
pub fn encode(rows: &[Stamped<'_>], dim: usize) -> Vec<FieldData> {
    fn strings(name: &str, data: Vec<String>) -> FieldData {
        scalars(name, data_type::VARCHAR, ScalarColumn::Strings(Strings { data }))
    }
    fn json(name: &str, data: Vec<Vec<u8>>) -> FieldData {
        scalars(name, data_type::JSON, ScalarColumn::Json(Jsons { data }))
    }
    fn longs(name: &str, data: Vec<i64>) -> FieldData {
        scalars(name, data_type::INT64, ScalarColumn::Longs(Longs { data }))
    }
    fn bools(name: &str, data: Vec<bool>) -> FieldData {
        scalars(name, data_type::BOOL, ScalarColumn::Bools(Bools { data }))
    }
    fn scalars(name: &str, kind: i32, data: ScalarColumn) -> FieldData {
        let column = Some(Column::Scalars(Scalars { data: Some(data) }));
        FieldData { kind, field_name: name.to_owned(), column }
    }
    fn of<'a, T>(rows: &'a [Stamped<'a>], take: impl Fn(&Stamped<'a>) -> T) -> Vec<T> {
        rows.iter().map(take).collect()
    }
    let floats = rows.iter().flat_map(|row| row.item.vector.as_slice().iter().copied()).collect();
    let vectors = Vectors { dim: dim as i64, floats: Some(Floats { data: floats }) };
    vec![
        strings(ID, of(rows, |row| row.item.id.as_str().to_owned())),
        FieldData {
            kind: data_type::FLOAT_VECTOR,
            field_name: VECTOR.to_owned(),
            column: Some(Column::Vectors(vectors)),
        },
        json(METADATA, of(rows, |row| row.item.metadata.as_str().as_bytes().to_vec())),
        json(FIELDS, of(rows, |row| fields::of(&row.item.metadata))),
        strings(CONTENT_HASH, of(rows, |row| row.item.content_hash.to_string())),
        longs(SEQ, of(rows, |row| row.seq.cast_signed())),
        longs(CREATED, of(rows, |row| row.created.0)),
        longs(UPDATED, of(rows, |row| row.updated.0)),
        bools(HAS_THUMBNAIL, of(rows, |row| row.kept.thumbnail)),
        bools(HAS_ORIGINAL, of(rows, |row| row.kept.original)),
    ]
}

/// What of an item's picture is kept, and under which hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    pub content_hash: ContentHash,
    pub thumbnail: bool,
    pub original: bool,
}

impl Kept {
    /// Whether it is anything.
    pub fn is_something(&self) -> bool {
        self.thumbnail || self.original
    }
}

/// Columns of a reply.
pub struct Columns {
    by_name: HashMap<String, Column>,
    rows: usize,
}

impl Columns {
    /// Of a reply's fields.
    pub fn new(fields: Vec<FieldData>) -> Self {
        let by_name: HashMap<String, Column> =
            fields.into_iter().filter_map(|field| Some((field.field_name, field.column?))).collect();
        let mut columns = Self { by_name, rows: 0 };
        columns.rows = columns.strings(ID).map_or(0, <[String]>::len);
        columns
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// With keys that stand beside the columns, as in what a search gives.
    pub fn with_ids(fields: Vec<FieldData>, ids: Vec<String>) -> Self {
        let mut columns = Self::new(fields);
        columns.rows = ids.len();
        let data = Some(ScalarColumn::Strings(Strings { data: ids }));
        columns.by_name.insert(ID.to_owned(), Column::Scalars(Scalars { data }));
        columns
    }

    fn scalars(&self, name: &str) -> Option<&ScalarColumn> {
        match self.by_name.get(name)? {
            Column::Scalars(Scalars { data }) => data.as_ref(),
            Column::Vectors(_) => None,
        }
    }

    fn strings(&self, name: &str) -> Option<&[String]> {
        match self.scalars(name)? {
            ScalarColumn::Strings(Strings { data }) => Some(data),
            _ => None,
        }
    }

    fn long(&self, name: &str, row: usize) -> Option<i64> {
        match self.scalars(name)? {
            ScalarColumn::Longs(Longs { data }) => data.get(row).copied(),
            _ => None,
        }
    }

    fn bool(&self, name: &str, row: usize) -> Option<bool> {
        match self.scalars(name)? {
            ScalarColumn::Bools(Bools { data }) => data.get(row).copied(),
            _ => None,
        }
    }

    /// The number of a count.
    pub fn count(&self) -> Option<u64> {
        self.long("count(*)", 0).and_then(|count| u64::try_from(count).ok())
    }

    /// A row's key.
    pub fn id(&self, row: usize) -> Option<ItemId> {
        self.strings(ID)?.get(row).and_then(|id| ItemId::new(id).ok())
    }

    /// A row's metadata.
    pub fn metadata(&self, row: usize) -> Option<Metadata> {
        match self.scalars(METADATA)? {
            ScalarColumn::Json(Jsons { data }) => {
                String::from_utf8(data.get(row)?.clone()).ok().map(Metadata::from_stored)
            }
            _ => None,
        }
    }

    /// A row's metadata as filters read it.
    pub fn fields(&self, row: usize) -> Option<&[u8]> {
        match self.scalars(FIELDS)? {
            ScalarColumn::Json(Jsons { data }) => data.get(row).map(Vec::as_slice),
            _ => None,
        }
    }

    /// A row's vector.
    pub fn vector(&self, row: usize) -> Option<Embedding> {
        let Column::Vectors(Vectors { dim, floats: Some(Floats { data }) }) = self.by_name.get(VECTOR)?
        else {
            return None;
        };
        let dim = usize::try_from(*dim).ok()?;
        Embedding::from_normalised(data.get(row * dim..(row + 1) * dim)?.to_vec()).ok()
    }

    /// The state of a row's item, and what is kept of its picture.
    pub fn state(&self, row: usize) -> Option<(ItemId, u64, Kept)> {
        Some((self.id(row)?, self.long(SEQ, row)?.cast_unsigned(), self.kept(row)?))
    }

    /// When the item of a row was first written.
    pub fn created(&self, row: usize) -> Option<Timestamp> {
        self.long(CREATED, row).map(Timestamp)
    }

    /// What is kept of a row's picture.
    pub fn kept(&self, row: usize) -> Option<Kept> {
        Some(Kept {
            content_hash: self.strings(CONTENT_HASH)?.get(row)?.parse().ok()?,
            thumbnail: self.bool(HAS_THUMBNAIL, row)?,
            original: self.bool(HAS_ORIGINAL, row)?,
        })
    }

    /// A row as an item.
    pub fn item(&self, row: usize, contract: Contract, with_vector: bool) -> Option<Item> {
        let Kept { content_hash, thumbnail, .. } = self.kept(row)?;
        Some(Item {
            id: self.id(row)?,
            vector: if with_vector { Some(self.vector(row)?) } else { None },
            contract,
            metadata: self.metadata(row)?,
            content_hash,
            has_thumbnail: thumbnail,
            seq: self.long(SEQ, row)?.cast_unsigned(),
            created: self.created(row)?,
            updated: Timestamp(self.long(UPDATED, row)?),
        })
    }
}
