//! Messages about rows: writing, searching and reading them.

use prost::{Message, Oneof};

use super::{Pair, Status};

#[derive(Clone, PartialEq, Message)]
pub struct Upsert {
    #[prost(string, tag = "3")]
    pub collection_name: String,
    #[prost(message, repeated, tag = "5")]
    pub fields_data: Vec<FieldData>,
    #[prost(uint32, tag = "7")]
    pub num_rows: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct Delete {
    #[prost(string, tag = "3")]
    pub collection_name: String,
    #[prost(string, tag = "5")]
    pub expr: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Mutation {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(uint64, tag = "9")]
    pub timestamp: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct PlaceholderGroup {
    #[prost(message, repeated, tag = "1")]
    pub placeholders: Vec<Placeholder>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Placeholder {
    #[prost(string, tag = "1")]
    pub tag: String,
    #[prost(int32, tag = "2")]
    pub kind: i32,
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub values: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Search {
    #[prost(string, tag = "3")]
    pub collection_name: String,
    /// The filter.
    #[prost(string, tag = "5")]
    pub dsl: String,
    /// A [`PlaceholderGroup`], encoded.
    #[prost(bytes = "vec", tag = "6")]
    pub placeholder_group: Vec<u8>,
    #[prost(int32, tag = "7")]
    pub dsl_type: i32,
    #[prost(string, repeated, tag = "8")]
    pub output_fields: Vec<String>,
    #[prost(message, repeated, tag = "9")]
    pub search_params: Vec<Pair>,
    #[prost(uint64, tag = "11")]
    pub guarantee_timestamp: u64,
    #[prost(int64, tag = "12")]
    pub nq: i64,
    #[prost(int32, tag = "14")]
    pub consistency_level: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct SearchResults {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(message, optional, tag = "2")]
    pub results: Option<SearchResultData>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SearchResultData {
    #[prost(message, repeated, tag = "3")]
    pub fields_data: Vec<FieldData>,
    #[prost(float, repeated, tag = "4")]
    pub scores: Vec<f32>,
    #[prost(message, optional, tag = "5")]
    pub ids: Option<Ids>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Ids {
    #[prost(message, optional, tag = "2")]
    pub str_id: Option<Strings>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Query {
    #[prost(string, tag = "3")]
    pub collection_name: String,
    #[prost(string, tag = "4")]
    pub expr: String,
    #[prost(string, repeated, tag = "5")]
    pub output_fields: Vec<String>,
    #[prost(uint64, tag = "8")]
    pub guarantee_timestamp: u64,
    #[prost(message, repeated, tag = "9")]
    pub query_params: Vec<Pair>,
    #[prost(int32, tag = "11")]
    pub consistency_level: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct QueryResults {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(message, repeated, tag = "2")]
    pub fields_data: Vec<FieldData>,
}

#[derive(Clone, PartialEq, Message)]
pub struct FieldData {
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(string, tag = "2")]
    pub field_name: String,
    #[prost(oneof = "Column", tags = "3, 4")]
    pub column: Option<Column>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum Column {
    #[prost(message, tag = "3")]
    Scalars(Scalars),
    #[prost(message, tag = "4")]
    Vectors(Vectors),
}

#[derive(Clone, PartialEq, Message)]
pub struct Scalars {
    #[prost(oneof = "ScalarColumn", tags = "1, 3, 6, 9")]
    pub data: Option<ScalarColumn>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum ScalarColumn {
    #[prost(message, tag = "1")]
    Bools(Bools),
    #[prost(message, tag = "3")]
    Longs(Longs),
    #[prost(message, tag = "6")]
    Strings(Strings),
    #[prost(message, tag = "9")]
    Json(Jsons),
}

#[derive(Clone, PartialEq, Message)]
pub struct Vectors {
    #[prost(int64, tag = "1")]
    pub dim: i64,
    #[prost(message, optional, tag = "2")]
    pub floats: Option<Floats>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Floats {
    #[prost(float, repeated, tag = "1")]
    pub data: Vec<f32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Bools {
    #[prost(bool, repeated, tag = "1")]
    pub data: Vec<bool>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Longs {
    #[prost(int64, repeated, tag = "1")]
    pub data: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Strings {
    #[prost(string, repeated, tag = "1")]
    pub data: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Jsons {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub data: Vec<Vec<u8>>,
}
