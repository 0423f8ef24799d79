//! Errors of the store, each with a stable code.

use std::path::PathBuf;

use latentd_model::Contract;

use super::filter::FilterError;
use super::names::{CollectionName, InvalidValue};

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A vector of another encoder than the collection's.
    #[error(
        "collection {collection:?} holds vectors of contract {collection_contract}, but this vector has contract \
         {vector_contract}: vectors of different encoders cannot be compared. Use another collection, or delete \
         this one and index again"
    )]
    ContractMismatch {
        /// The collection.
        collection: CollectionName,
        /// Its contract.
        collection_contract: Contract,
        /// The vector's contract.
        vector_contract: Contract,
    },
    /// A vector of the right contract but another length.
    #[error("collection {collection:?} holds vectors of {expected} numbers, but this one has {actual}")]
    DimensionMismatch {
        /// The collection.
        collection: CollectionName,
        /// Length of its vectors.
        expected: usize,
        /// Length of this one.
        actual: usize,
    },
    /// An id, a name, metadata or a number outside its bounds.
    #[error(transparent)]
    Invalid(#[from] InvalidValue),
    /// A filter that does not parse.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// No such collection.
    #[error("there is no collection {0:?}: it comes into being with its first item")]
    UnknownCollection(CollectionName),
    /// Too much is queued already.
    #[error("the store has too many {what} waiting: try again in a moment")]
    Busy {
        /// Writes, reads or searches.
        what: &'static str,
    },
    /// The store was closed, or its writer died.
    #[error("the store is closed")]
    Closed,
    /// No space left for the database.
    #[error("the disk is full: nothing of this write was kept. Make room in {dir} and send it again")]
    Full {
        /// The data folder.
        dir: PathBuf,
    },
    /// Another process holds the data folder.
    #[error("{dir} is in use by another latentd{holder}: stop it, or give `index` and `search` its address with --url", dir = dir.display())]
    Locked {
        /// The data folder.
        dir: PathBuf,
        /// ` (process 123)` when known.
        holder: String,
    },
    /// The data folder cannot be made, read or written.
    #[error("{path}: {reason}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file that latentd did not make lies where the database should be.
    #[error("{path} is no latentd store ({reason}): it was left as it is. Move it away or choose another data folder",
            path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// How it was told.
        reason: String,
    },
    /// The database was written by a newer latentd.
    #[error("{path} has schema version {found}, but this latentd knows versions up to {supported}: use a newer latentd",
            path = path.display())]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// Version of the file.
        found: i64,
        /// Newest version this build reads.
        supported: i64,
    },
    /// The database is damaged.
    #[error("{path} is damaged ({reason}): restore it from a backup", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite or the checksum said.
        reason: String,
    },
    /// SQLite refused for another reason.
    #[error("the database refused: {0}")]
    Database(String),
    /// The distributed engine does not answer, or cannot now.
    #[error("the store's engine at {address} does not answer: {reason}")]
    Unavailable {
        /// Its address.
        address: String,
        /// What was seen.
        reason: String,
    },
    /// The distributed engine refused.
    #[error("the store's engine at {address} refused: {reason}")]
    Engine {
        /// Its address.
        address: String,
        /// What it said.
        reason: String,
    },
    /// A collection of another program lies in the distributed engine where one of ours should be.
    #[error(
        "{address} is no collection of latentd ({reason}): it was left as it is. Choose another database"
    )]
    ForeignCollection {
        /// Its address.
        address: String,
        /// How it was told.
        reason: String,
    },
    /// The encoder of the store is being changed.
    #[error("the encoder of this store is being changed: send it again in a moment")]
    Changing,
    /// Another process changes the encoder of the store.
    #[error(
        "another latentd ({by}) changes the encoder of this store: wait until it is done, or cancel it there"
    )]
    Led {
        /// Which one.
        by: String,
    },
    /// The engine in use cannot do it.
    #[error("this store's engine cannot do it: {what}")]
    Unsupported {
        /// What was asked for, and what to do instead.
        what: &'static str,
    },
    /// A defect of latentd itself.
    #[error("the store failed internally: {0}")]
    Internal(&'static str),
}

impl StoreError {
    /// What clients are told: where the files lie is for the log.
    pub fn for_clients(&self) -> String {
        match self {
            Self::Full { .. } => {
                "the store's disk is full: nothing of this write was kept. Send it again once there is room"
                    .to_owned()
            }
            Self::Io { .. } => {
                "the store's files cannot be read or written; the server's log says more".to_owned()
            }
            Self::Damaged { reason, .. } => format!("the store is damaged ({reason})"),
            Self::Locked { .. } | Self::Foreign { .. } | Self::NewerSchema { .. } => {
                "the store's files cannot be used; the server's log says more".to_owned()
            }
            _ => self.to_string(),
        }
    }

    /// The stable code of this error, for problem bodies and item results.
    pub fn code(&self) -> &'static str {
        match self {
            Self::ContractMismatch { .. } => "contract_mismatch",
            Self::DimensionMismatch { .. } => "dimension_mismatch",
            Self::Invalid(invalid) => invalid.code(),
            Self::Filter(_) => "invalid_filter",
            Self::UnknownCollection(_) => "unknown_collection",
            Self::Busy { .. } => "store_busy",
            Self::Closed => "store_closed",
            Self::Full { .. } => "storage_full",
            Self::Locked { .. } => "store_locked",
            Self::Io { .. } => "store_io",
            Self::Foreign { .. } => "foreign_file",
            Self::NewerSchema { .. } => "newer_schema",
            Self::Damaged { .. } => "store_damaged",
            Self::Database(_) => "store_database",
            Self::Unavailable { .. } => "store_unavailable",
            Self::Engine { .. } => "store_engine",
            Self::ForeignCollection { .. } => "foreign_collection",
            Self::Changing => "encoder_changing",
            Self::Led { .. } => "refresh_under_way",
            Self::Unsupported { .. } => "store_unsupported",
            Self::Internal(_) => "internal",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_no_path() {
        let path = || PathBuf::from("/srv/data/store.sqlite3");
        let reason = || "disk I/O error".to_owned();
        for error in [
            StoreError::Full { dir: path() },
            StoreError::Locked { dir: path(), holder: String::new() },
            StoreError::Io { path: path(), reason: reason() },
            StoreError::Foreign { path: path(), reason: reason() },
            StoreError::NewerSchema { path: path(), found: 9, supported: 1 },
            StoreError::Damaged { path: path(), reason: reason() },
        ] {
            assert!(error.to_string().contains("/srv/data"), "{error}");
            let told = error.for_clients();
            assert!(!told.contains("/srv") && told.starts_with("the store"), "{told}");
        }
        assert_eq!(StoreError::Closed.for_clients(), StoreError::Closed.to_string());
    }
}
