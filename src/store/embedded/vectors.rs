//! Vectors of the database, for indexes that keep less of them in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rusqlite::Connection;

use super::files::Reading;
use super::rows::{self, Checked, CollectionRow};
use crate::store::index::{Source, Stored};
use crate::store::{ItemId, StoreError};

/// Connections that read vectors: as many as threads ever read at once.
pub struct VectorReaders {
    reading: Reading,
    idle: Mutex<Vec<Connection>>,
    closed: AtomicBool,
}

impl VectorReaders {
    /// None yet.
    pub fn new(reading: Reading) -> Self {
        Self { reading, idle: Mutex::default(), closed: AtomicBool::new(false) }
    }

    /// Lets go of the database; nothing is read any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.idle.lock().clear();
    }

    /// Reads in one transaction; nothing once it is closed, or where the database refuses, which is logged.
    fn read(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<()>) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        // Opened without the lock.
        let idle = self.idle.lock().pop();
        let connection = match idle.map_or_else(|| self.reading.open(), Ok) {
            Ok(connection) => connection,
            Err(error) => return refused(&error),
        };
        let done = connection.unchecked_transaction().and_then(|transaction| read(&transaction));
        if let Err(error) = done {
            refused(&self.reading.error(error));
        }
        let mut idle = self.idle.lock();
        if !self.closed.load(Ordering::Acquire) {
            idle.push(connection);
        }
    }
}

fn refused(error: &StoreError) {
    tracing::error!(%error, "vectors could not be read: scores are those of their codes");
}

/// The vectors of one collection.
pub struct CollectionVectors {
    readers: Arc<VectorReaders>,
    row: CollectionRow,
}

impl CollectionVectors {
    /// Of this collection.
    pub fn new(readers: Arc<VectorReaders>, row: CollectionRow) -> Self {
        Self { readers, row }
    }
}

impl Source for CollectionVectors {
    fn read(&self, ids: &[ItemId], each: &mut dyn FnMut(usize, Stored<'_>)) {
        self.readers.read(|connection| {
            let mut vector = vec![0f32; self.row.dim];
            for (place, id) in ids.iter().enumerate() {
                rows::vector(connection, &self.row, id, &mut vector, |metadata, vector| {
                    each(place, Stored { metadata, vector });
                })?;
            }
            Ok(())
        });
    }

    fn scan(&self, each: &mut dyn FnMut(&ItemId, &[f32])) {
        self.readers.read(|connection| {
            rows::scan(connection, &self.row, |item| {
                if let Checked::Sound((id, _, vector, _)) = item {
                    each(&id, vector);
                }
            })
        });
    }
}
