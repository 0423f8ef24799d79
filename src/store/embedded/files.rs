//! Files of the data folder: its lock, and connections to its database.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::schema;
use crate::store::StoreError;

/// When a write counts as kept.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Once the disk has it: it survives a power cut.
    #[default]
    Full,
    /// Once the system has it: it survives a crash of the process; a power cut may take the last seconds.
    Normal,
}

/// Name of the database in the data folder.
pub const DATABASE: &str = "store.sqlite3";
const LOCK: &str = "store.lock";
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// What a SQLite error means for the caller.
pub fn database_error(error: rusqlite::Error, path: &Path) -> StoreError {
    let io = |reason: String| StoreError::Io { path: path.to_owned(), reason };
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full { dir: path.parent().unwrap_or(path).to_owned() },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Damaged { path: path.to_owned(), reason: error.to_string() }
        }
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            io(format!("cannot be written: {error}"))
        }
        Some(ErrorCode::SystemIoFailure) => io(error.to_string()),
        _ => StoreError::Database(error.to_string()),
    }
}

fn io_error(path: &Path) -> impl Fn(std::io::Error) -> StoreError {
    move |error| {
        if error.kind() == std::io::ErrorKind::StorageFull {
            return StoreError::Full { dir: path.to_owned() };
        }
        StoreError::Io { path: path.to_owned(), reason: error.to_string() }
    }
}

/// The data folder, held by this process until dropped.
pub struct DataDir {
    dir: PathBuf,
    /// The system lets go of its lock when the process ends, however it ends.
    _lock: File,
}

impl DataDir {
    /// Makes the folder when it is missing, and locks it.
    pub fn lock(dir: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(io_error(dir))?;
        let path = dir.join(LOCK);
        let fail = io_error(&path);
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file
            .as_mut()
            .map_err(|error| StoreError::Io { path: path.clone(), reason: error.to_string() })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut process = String::new();
                // The number is a courtesy; without it the refusal is as clear.
                let _ = file.take(20).read_to_string(&mut process);
                let number = process.trim().parse::<u32>();
                let holder = number.map_or(String::new(), |number| format!(" (process {number})"));
                return Err(StoreError::Locked { dir: dir.to_owned(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(fail(error)),
        }
        let mut held = file.try_clone().map_err(&fail)?;
        held.set_len(0).and_then(|()| held.rewind()).map_err(&fail)?;
        held.write_all(std::process::id().to_string().as_bytes()).map_err(&fail)?;
        Ok(Self { dir: dir.to_owned(), _lock: held })
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.dir.join(DATABASE)
    }

    /// Refuses a file that is no SQLite database, before SQLite touches it.
    fn check_magic(&self) -> Result<(), StoreError> {
        let path = self.database();
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(io_error(&path))?,
        };
        let mut start = Vec::with_capacity(SQLITE_MAGIC.len());
        (&mut file).take(16).read_to_end(&mut start).map_err(io_error(&path))?;
        // An empty file is what SQLite leaves when it dies before its first write.
        if start.is_empty() || start == SQLITE_MAGIC {
            return Ok(());
        }
        Err(StoreError::Foreign { path, reason: "it does not begin as a SQLite database".to_owned() })
    }

    /// The one connection that writes; makes the database or brings it to the newest schema.
    pub fn open_writer(&self, durability: Durability) -> Result<Connection, StoreError> {
        self.check_magic()?;
        let path = self.database();
        let fail = |error| database_error(error, &path);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&path, flags).map_err(fail)?;
        prepare(&connection).map_err(fail)?;
        // Before anything in the file is changed, its journal mode too.
        schema::check(&connection, &path)?;
        // A page of 8 KiB holds three vectors of 512 numbers; it matters only to a new file.
        connection
            .execute_batch(
                "PRAGMA page_size = 8192;
                 PRAGMA journal_mode = WAL;
                 PRAGMA fullfsync = ON;
                 PRAGMA checkpoint_fullfsync = ON;
                 PRAGMA foreign_keys = ON;
                 PRAGMA wal_autocheckpoint = 2000;
                 PRAGMA journal_size_limit = 67108864;",
            )
            .map_err(fail)?;
        let synchronous = if durability == Durability::Full { "FULL" } else { "NORMAL" };
        connection.execute_batch(&format!("PRAGMA synchronous = {synchronous}")).map_err(fail)?;
        schema::migrate(&mut connection, &path)?;
        Ok(connection)
    }

    /// What opens connections that only read.
    pub fn reading(&self) -> Reading {
        Reading { path: self.database() }
    }

    /// A connection that only reads.
    pub fn open_reader(&self) -> Result<Connection, StoreError> {
        self.reading().open()
    }
}

/// Opens connections to the database that only read.
pub struct Reading {
    path: PathBuf,
}

impl Reading {
    /// A connection.
    pub fn open(&self) -> Result<Connection, StoreError> {
        let fail = |error| self.error(error);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags).map_err(fail)?;
        prepare(&connection).map_err(fail)?;
        Ok(connection)
    }

    /// What an error of one of them means.
    pub fn error(&self, error: rusqlite::Error) -> StoreError {
        database_error(error, &self.path)
    }
}

pub fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.set_prepared_statement_cache_capacity(32);
    connection.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;")
}
