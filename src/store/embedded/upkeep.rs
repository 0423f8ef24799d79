//! Upkeep: checking, backing up, restoring and compacting a data folder, without serving it.

use std::fs::File;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::files::{DATABASE, DataDir, Durability, database_error};
use super::rows::{self, Checked};
use super::schema;
use crate::store::{CollectionName, StoreError};

/// What a check found.
#[derive(Debug, Clone, Default)]
pub struct CheckReport {
    /// The schema version.
    pub schema: i64,
    /// Each collection, by name, with its items that fit their checksums.
    pub collections: Vec<(CollectionName, u64)>,
    /// Items that do not, with their collection.
    pub damaged: Vec<(CollectionName, String)>,
    /// What SQLite itself found wrong, at most a hundred lines.
    pub problems: Vec<String>,
    /// Number of the last write.
    pub seq: u64,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn sound(&self) -> bool {
        self.damaged.is_empty() && self.problems.is_empty()
    }
}

fn io_error(path: &Path) -> impl Fn(std::io::Error) -> StoreError {
    move |error| StoreError::Io { path: path.to_owned(), reason: error.to_string() }
}

/// Opens a database to be read, also while a server writes it.
fn open(path: &Path) -> Result<Connection, StoreError> {
    // SQLite's own message for a missing file names neither the file nor the reason.
    File::open(path).map_err(io_error(path))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let fail = |error| database_error(error, path);
    let connection = Connection::open_with_flags(path, flags).map_err(fail)?;
    super::files::prepare(&connection).map_err(fail)?;
    if schema::check(&connection, path)? == 0 {
        let reason = "there are no tables in it".to_owned();
        return Err(StoreError::Foreign { path: path.to_owned(), reason });
    }
    Ok(connection)
}

/// The database of a data folder.
pub fn database(dir: &Path) -> PathBuf {
    dir.join(DATABASE)
}

/// Reads everything of a database and compares it with its checksums; changes nothing.
///
/// # Errors
/// A file that is no latentd store, or that cannot be read at all.
pub fn check(path: &Path) -> Result<CheckReport, StoreError> {
    let connection = open(path)?;
    examine(&connection, path).map_err(|error| database_error(error, path))
}

fn examine(connection: &Connection, path: &Path) -> rusqlite::Result<CheckReport> {
    let mut report =
        CheckReport { schema: schema::check(connection, path).unwrap_or(0), ..CheckReport::default() };
    let mut statement = connection.prepare("PRAGMA integrity_check(100)")?;
    let lines: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    report.problems = lines.into_iter().filter(|line| line != "ok").collect();
    let mut statement = connection.prepare("PRAGMA foreign_key_check")?;
    let orphans = statement.query_map([], |row| row.get::<_, String>(0))?.count();
    if orphans > 0 {
        report.problems.push(format!("{orphans} rows belong to nothing"));
    }
    for row in rows::collections(connection)? {
        let mut sound = 0;
        rows::scan(connection, &row, |item| match item {
            Checked::Sound(_) => sound += 1,
            Checked::Damaged(id) => report.damaged.push((row.name.clone(), id)),
        })?;
        if !row.spare {
            report.collections.push((row.name.clone(), sound));
        }
    }
    report.collections.sort();
    report.seq = rows::last_seq(connection)?;
    Ok(report)
}

/// Deletes the items of a data folder that do not fit their checksums and builds its indexes anew; tells how many
/// it deleted. No process may have it open.
///
/// # Errors
/// A folder in use, or a database whose own structure is damaged: that is not repaired.
pub fn repair(dir: &Path) -> Result<usize, StoreError> {
    let data = DataDir::lock(dir)?;
    let path = data.database();
    let report = check(&path)?;
    let structure: Vec<&String> = report.problems.iter().filter(|line| !line.contains("index")).collect();
    if let Some(line) = structure.first() {
        return Err(StoreError::Damaged { path, reason: (*line).clone() });
    }
    let fail = |error| database_error(error, &path);
    let mut connection = data.open_writer(Durability::Full)?;
    let keys = rows::collections(&connection).map_err(fail)?;
    let transaction = connection.transaction().map_err(fail)?;
    transaction.execute_batch("REINDEX").map_err(fail)?;
    let mut deleted = 0;
    for (name, id) in &report.damaged {
        for row in keys.iter().filter(|row| row.name == *name) {
            let sql = "DELETE FROM items WHERE collection = ?1 AND id = ?2";
            // A spare of the same name may hold it too, whole: it is made again from the serving one.
            deleted += transaction.execute(sql, (row.key, id)).map_err(fail)?;
        }
    }
    transaction.commit().map_err(fail)?;
    Ok(deleted)
}

/// Copies the database of a data folder, as of one moment, to a new file; a server may go on writing it. Gives
/// what the check of the copy found.
///
/// # Errors
/// Where there is a file of that name already, or the copy fails.
pub fn backup(dir: &Path, to: &Path) -> Result<CheckReport, StoreError> {
    refuse_existing(to)?;
    let from = database(dir);
    let connection = open(&from)?;
    let part = part_of(to);
    let copy = || {
        pack(&connection, &part)?;
        let report = check(&part)?;
        settle(&part, to)?;
        Ok(report)
    };
    copy().inspect_err(|_| drop(std::fs::remove_file(&part)))
}

/// Makes a backup the database of a data folder that has none.
///
/// # Errors
/// Where the folder has a database already, or the backup is damaged.
pub fn restore(from: &Path, dir: &Path) -> Result<CheckReport, StoreError> {
    let data = DataDir::lock(dir)?;
    let to = data.database();
    refuse_existing(&to)?;
    let report = check(from)?;
    if !report.sound() {
        let first = report.problems.first().cloned();
        let reason =
            first.unwrap_or_else(|| format!("{} items do not fit their checksums", report.damaged.len()));
        return Err(StoreError::Damaged { path: from.to_owned(), reason });
    }
    let part = part_of(&to);
    // Through SQLite: a log that lies beside the file is part of what was checked.
    pack(&open(from)?, &part)?;
    settle(&part, &to)?;
    Ok(report)
}

/// Packs the database of a data folder, so that what was deleted takes no space; gives its bytes before and after.
/// No process may have it open.
///
/// # Errors
/// A folder in use, or too little space for a second copy meanwhile.
pub fn compact(dir: &Path) -> Result<(u64, u64), StoreError> {
    let data = DataDir::lock(dir)?;
    let path = data.database();
    File::open(&path).map_err(io_error(&path))?;
    let size = || std::fs::metadata(&path).map(|metadata| metadata.len()).map_err(io_error(&path));
    let before = size()?;
    let connection = data.open_writer(Durability::Full)?;
    let fail = |error| database_error(error, &path);
    connection.execute_batch("VACUUM").map_err(fail)?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(fail)?;
    connection.close().map_err(|(_, error)| fail(error))?;
    Ok((before, size()?))
}

/// A packed copy of the last commit, in one read transaction.
fn pack(from: &Connection, to: &Path) -> Result<(), StoreError> {
    // A rest of an earlier try would make SQLite refuse.
    std::fs::remove_file(to).or_else(not_found).map_err(io_error(to))?;
    let name = to.to_str().ok_or_else(|| io_error(to)(std::io::ErrorKind::InvalidFilename.into()))?;
    from.execute("VACUUM INTO ?1", [name]).map(drop).map_err(|error| database_error(error, to))
}

fn not_found(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn refuse_existing(path: &Path) -> Result<(), StoreError> {
    if path.exists() {
        let reason = "there is a file already, which is not overwritten: move it away or choose another name";
        return Err(StoreError::Io { path: path.to_owned(), reason: reason.to_owned() });
    }
    Ok(())
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

/// Makes a finished file durable under its name.
fn settle(part: &Path, to: &Path) -> Result<(), StoreError> {
    File::open(part).and_then(|file| file.sync_all()).map_err(io_error(part))?;
    std::fs::rename(part, to).map_err(io_error(to))?;
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error(folder))
}
