//! Messages of Milvus' gRPC interface: those that latentd sends and reads, with the fields it uses.
//!
//! Declared by hand after milvus-proto v2.3 (Apache-2.0), so that building needs no protoc. Unknown fields of a
//! reply are skipped; the numbers are what counts, later versions of Milvus keep them.
#![allow(missing_docs, reason = "named and described by milvus-proto")]

mod rows;

use prost::Message;

pub use rows::*;

/// A request, the path of its call and its reply.
pub trait Rpc: Message + Clone + Default + 'static {
    const PATH: &'static str;
    /// The name of the call, for people.
    const NAME: &'static str;
    type Reply: Reply;
}

/// A reply, which tells how it went.
pub trait Reply: Message + Default + 'static {
    fn status(&self) -> Option<&Status>;
}

macro_rules! rpc {
    ($($request:ident => $reply:ident, $name:literal;)*) => {$(
        impl Rpc for $request {
            const PATH: &'static str = concat!("/milvus.proto.milvus.MilvusService/", $name);
            const NAME: &'static str = $name;
            type Reply = $reply;
        }
    )*};
}

rpc! {
    GetVersion => Version, "GetVersion";
    CheckHealth => Health, "CheckHealth";
    AllocTimestamp => Allocated, "AllocTimestamp";
    Flush => Flushed, "Flush";
    ManualCompaction => Compaction, "ManualCompaction";
    GetCompactionState => CompactionState, "GetCompactionState";
    ListDatabases => Databases, "ListDatabases";
    CreateDatabase => Status, "CreateDatabase";
    CreateCollection => Status, "CreateCollection";
    DropCollection => Status, "DropCollection";
    DescribeCollection => Described, "DescribeCollection";
    HasCollection => Has, "HasCollection";
    ShowCollections => Shown, "ShowCollections";
    LoadCollection => Status, "LoadCollection";
    GetLoadState => LoadState, "GetLoadState";
    CreateIndex => Status, "CreateIndex";
    CreateAlias => Status, "CreateAlias";
    DropAlias => Status, "DropAlias";
    Upsert => Mutation, "Upsert";
    Delete => Mutation, "Delete";
    Search => SearchResults, "Search";
    Query => QueryResults, "Query";
}

macro_rules! replies {
    ($($reply:ident)*) => {$(
        impl Reply for $reply {
            fn status(&self) -> Option<&Status> {
                self.status.as_ref()
            }
        }
    )*};
}

replies! { Flushed Compaction CompactionState Version Health Allocated Databases Described Has Shown LoadState Mutation SearchResults QueryResults }

impl Reply for Status {
    fn status(&self) -> Option<&Status> {
        Some(self)
    }
}

/// Types of fields.
pub mod data_type {
    pub const BOOL: i32 = 1;
    pub const INT64: i32 = 5;
    pub const VARCHAR: i32 = 21;
    pub const JSON: i32 = 23;
    pub const FLOAT_VECTOR: i32 = 101;
}

/// How new what a read sees must be.
pub mod consistency {
    /// Everything written before the read.
    pub const STRONG: i32 = 0;
    /// Everything but the last few seconds.
    pub const BOUNDED: i32 = 2;
    /// Everything up to the timestamp that the read names.
    pub const CUSTOMIZED: i32 = 4;
}

/// The load state of a collection that answers.
pub const LOADED: i32 = 3;
/// The state of a compaction that is done.
pub const COMPACTED: i32 = 2;
/// The type of a vector to search with.
pub const PLACEHOLDER_FLOAT_VECTOR: i32 = 101;
/// The language of a search's filter.
pub const DSL_BOOL_EXPR: i32 = 1;

#[derive(Clone, PartialEq, Message)]
pub struct Status {
    #[prost(int32, tag = "1")]
    pub error_code: i32,
    #[prost(string, tag = "2")]
    pub reason: String,
    #[prost(int32, tag = "3")]
    pub code: i32,
    #[prost(bool, tag = "4")]
    pub retriable: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Pair {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

impl Pair {
    pub fn new(key: &str, value: impl ToString) -> Self {
        Self { key: key.to_owned(), value: value.to_string() }
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct GetVersion {}

#[derive(Clone, PartialEq, Message)]
pub struct Version {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(string, tag = "2")]
    pub version: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct CheckHealth {}

#[derive(Clone, PartialEq, Message)]
pub struct Health {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(bool, tag = "2")]
    pub is_healthy: bool,
    #[prost(string, repeated, tag = "3")]
    pub reasons: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AllocTimestamp {}

#[derive(Clone, PartialEq, Message)]
pub struct Allocated {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(uint64, tag = "2")]
    pub timestamp: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Flush {
    #[prost(string, repeated, tag = "3")]
    pub collection_names: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Flushed {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ManualCompaction {
    #[prost(int64, tag = "1")]
    pub collection_id: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Compaction {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(int64, tag = "2")]
    pub compaction_id: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct GetCompactionState {
    #[prost(int64, tag = "1")]
    pub compaction_id: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct CompactionState {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(int32, tag = "2")]
    pub state: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct ListDatabases {}

#[derive(Clone, PartialEq, Message)]
pub struct Databases {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(string, repeated, tag = "2")]
    pub db_names: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct CreateDatabase {
    #[prost(string, tag = "2")]
    pub db_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct CollectionSchema {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub description: String,
    #[prost(message, repeated, tag = "4")]
    pub fields: Vec<FieldSchema>,
}

#[derive(Clone, PartialEq, Message)]
pub struct FieldSchema {
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(bool, tag = "3")]
    pub is_primary_key: bool,
    #[prost(int32, tag = "5")]
    pub data_type: i32,
    #[prost(message, repeated, tag = "6")]
    pub type_params: Vec<Pair>,
}

#[derive(Clone, PartialEq, Message)]
pub struct CreateCollection {
    #[prost(string, tag = "3")]
    pub collection_name: String,
    /// A [`CollectionSchema`], encoded.
    #[prost(bytes = "vec", tag = "4")]
    pub schema: Vec<u8>,
    #[prost(int32, tag = "5")]
    pub shards_num: i32,
    #[prost(int32, tag = "6")]
    pub consistency_level: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct DropCollection {
    #[prost(string, tag = "3")]
    pub collection_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct DescribeCollection {
    /// A name or an alias.
    #[prost(string, tag = "3")]
    pub collection_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct HasCollection {
    /// A name or an alias.
    #[prost(string, tag = "3")]
    pub collection_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Has {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(bool, tag = "2")]
    pub value: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Described {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(message, optional, tag = "2")]
    pub schema: Option<CollectionSchema>,
    #[prost(int64, tag = "3")]
    pub collection_id: i64,
    #[prost(uint64, tag = "7")]
    pub created_utc_timestamp: u64,
    #[prost(string, repeated, tag = "9")]
    pub aliases: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ShowCollections {}

#[derive(Clone, PartialEq, Message)]
pub struct Shown {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(string, repeated, tag = "2")]
    pub collection_names: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct LoadCollection {
    #[prost(string, tag = "3")]
    pub collection_name: String,
    #[prost(int32, tag = "4")]
    pub replica_number: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct GetLoadState {
    #[prost(string, tag = "2")]
    pub collection_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct LoadState {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(int32, tag = "2")]
    pub state: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct CreateIndex {
    #[prost(string, tag = "3")]
    pub collection_name: String,
    #[prost(string, tag = "4")]
    pub field_name: String,
    #[prost(message, repeated, tag = "5")]
    pub extra_params: Vec<Pair>,
    #[prost(string, tag = "6")]
    pub index_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct CreateAlias {
    #[prost(string, tag = "3")]
    pub collection_name: String,
    #[prost(string, tag = "4")]
    pub alias: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct DropAlias {
    #[prost(string, tag = "3")]
    pub alias: String,
}
