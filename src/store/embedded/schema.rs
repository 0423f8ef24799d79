//! The database's schema: its versions, and how an older one becomes the newest.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::files::database_error;
use crate::store::{StoreError, Timestamp};

/// Says that a SQLite file is a latentd store: "ltnd".
pub const APPLICATION_ID: i64 = 0x6c74_6e64;

struct Migration {
    description: &'static str,
    sql: &'static str,
}

/// The migration at index n makes schema version n + 1. What was released is never changed, only added to.
const MIGRATIONS: &[Migration] = &[FIRST, REFRESH];

const FIRST: Migration = Migration {
    description: "collections, items, thumbnails",
    sql: "
        CREATE TABLE counters (
            name TEXT PRIMARY KEY,
            value INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID;
        INSERT INTO counters VALUES ('seq', 0);

        CREATE TABLE collections (
            key INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL UNIQUE,
            contract BLOB NOT NULL CHECK (length(contract) = 8),
            dim INTEGER NOT NULL CHECK (dim > 0),
            created INTEGER NOT NULL
        ) STRICT;

        CREATE TABLE items (
            key INTEGER PRIMARY KEY,
            collection INTEGER NOT NULL REFERENCES collections (key) ON DELETE CASCADE,
            id TEXT NOT NULL,
            vector BLOB NOT NULL,
            metadata TEXT NOT NULL,
            content_hash BLOB NOT NULL CHECK (length(content_hash) = 32),
            checksum INTEGER NOT NULL,
            seq INTEGER NOT NULL,
            revision INTEGER NOT NULL,
            created INTEGER NOT NULL,
            updated INTEGER NOT NULL,
            UNIQUE (collection, id)
        ) STRICT;

        CREATE TABLE thumbnails (
            item INTEGER PRIMARY KEY REFERENCES items (key) ON DELETE CASCADE,
            jpeg BLOB NOT NULL
        ) STRICT;",
};

// A picture is kept once for all items and generations that were made from it, and goes with the last of them.
const REFRESH: Migration = Migration {
    description: "pictures, settings, spare generations",
    sql: "
        CREATE TABLE pictures (
            hash BLOB PRIMARY KEY CHECK (length(hash) = 32),
            file BLOB NOT NULL
        ) STRICT;

        CREATE TABLE settings (
            name TEXT PRIMARY KEY,
            value TEXT NOT NULL
        ) STRICT, WITHOUT ROWID;

        CREATE INDEX items_by_content ON items (content_hash);

        CREATE TRIGGER picture_of_deleted AFTER DELETE ON items BEGIN
            DELETE FROM pictures WHERE hash = old.content_hash
                AND NOT EXISTS (SELECT 1 FROM items WHERE content_hash = old.content_hash);
        END;

        CREATE TRIGGER picture_of_replaced AFTER UPDATE OF content_hash ON items
        WHEN old.content_hash != new.content_hash BEGIN
            DELETE FROM pictures WHERE hash = old.content_hash
                AND NOT EXISTS (SELECT 1 FROM items WHERE content_hash = old.content_hash);
        END;",
};

/// The newest schema version, which this build reads and writes.
pub const NEWEST: i64 = MIGRATIONS.len() as i64;

/// Checks that the database is ours and not newer than this build; gives its version. Changes nothing.
pub fn check(connection: &Connection, path: &Path) -> Result<i64, StoreError> {
    let number = |sql: &str| {
        connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(|error| database_error(error, path))
    };
    let application = number("PRAGMA application_id")?;
    let found = number("PRAGMA user_version")?;
    let tables = number("SELECT count(*) FROM sqlite_master")?;
    if application != APPLICATION_ID && (tables > 0 || found != 0 || application != 0) {
        let reason = "it is a SQLite database of another program".to_owned();
        return Err(StoreError::Foreign { path: path.to_owned(), reason });
    }
    if found > NEWEST {
        return Err(StoreError::NewerSchema { path: path.to_owned(), found, supported: NEWEST });
    }
    Ok(found)
}

/// Checks the database and brings it to the newest version, each step in one transaction.
pub fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let found = check(connection, path)?;
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(usize::try_from(found).unwrap_or(0)) {
        apply(connection, index as i64 + 1, migration).map_err(|error| database_error(error, path))?;
        tracing::info!(version = index + 1, description = migration.description, "store schema migrated");
    }
    Ok(())
}

fn apply(connection: &mut Connection, version: i64, migration: &Migration) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS schema_migrations (
            version INTEGER PRIMARY KEY,
            description TEXT NOT NULL,
            applied TEXT NOT NULL
        ) STRICT;",
    )?;
    transaction.execute_batch(migration.sql)?;
    transaction.execute(
        "INSERT INTO schema_migrations VALUES (?1, ?2, ?3)",
        (version, migration.description, Timestamp::now().to_string()),
    )?;
    transaction.execute_batch(&format!(
        "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version};"
    ))?;
    transaction.commit()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_new_file_gets_every_version_once() {
        let path = Path::new("x");
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, path).unwrap();
        migrate(&mut connection, path).unwrap();
        let count: i64 =
            connection.query_row("SELECT count(*) FROM schema_migrations", [], |row| row.get(0)).unwrap();
        assert_eq!(count, NEWEST);
        connection.execute_batch("PRAGMA user_version = 99").unwrap();
        let error = migrate(&mut connection, path).unwrap_err();
        assert_eq!(error.code(), "newer_schema");
        assert!(error.to_string().contains("schema version 99"), "{error}");
    }

    #[test]
    fn other_databases_are_refused() {
        for sql in ["CREATE TABLE t (x)", "PRAGMA application_id = 7", "PRAGMA user_version = 3"] {
            let mut connection = Connection::open_in_memory().unwrap();
            connection.execute_batch(sql).unwrap();
            assert_eq!(migrate(&mut connection, Path::new("x")).unwrap_err().code(), "foreign_file", "{sql}");
        }
    }
}
