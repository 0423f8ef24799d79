//! Rows: items as the database keeps them.

use latentd_model::{Contract, Embedding};
use rusqlite::{Connection, OptionalExtension, Row};

use crate::store::refresh::KeptPicture;
use crate::store::{CollectionName, ContentHash, Item, ItemId, Metadata, NewItem, Thumbnail, Timestamp};

/// A collection as the database keeps it.
#[derive(Debug, Clone)]
pub struct CollectionRow {
    pub key: i64,
    pub name: CollectionName,
    pub contract: Contract,
    pub dim: usize,
    pub created: Timestamp,
    /// Whether it is the generation that does not serve.
    pub spare: bool,
}

/// What the name of a spare generation begins with in the database.
pub const SPARE: &str = "~";

/// Something in the database that latentd cannot have written.
pub fn foreign(
    column: usize,
    reason: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, reason.into())
}

pub fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    u64::try_from(row.get::<_, i64>(column)?).map_err(|error| foreign(column, error))
}

/// All collections.
pub fn collections(connection: &Connection) -> rusqlite::Result<Vec<CollectionRow>> {
    let mut statement = connection.prepare("SELECT key, name, contract, dim, created FROM collections")?;
    let rows = statement.query_map([], |row| {
        let contract: [u8; 8] = row.get(2)?;
        let name = row.get_ref(1)?.as_str()?;
        let plain = name.strip_prefix(SPARE);
        Ok(CollectionRow {
            key: row.get(0)?,
            name: CollectionName::new(plain.unwrap_or(name)).map_err(|error| foreign(1, error))?,
            spare: plain.is_some(),
            contract: Contract::from_bytes(contract),
            dim: usize::try_from(row.get::<_, i64>(3)?).map_err(|error| foreign(3, error))?,
            created: Timestamp(row.get(4)?),
        })
    })?;
    rows.collect()
}

/// Adds a collection.
pub fn insert_collection(
    connection: &Connection,
    name: &CollectionName,
    contract: Contract,
    dim: usize,
) -> rusqlite::Result<CollectionRow> {
    insert(connection, name, name.as_str(), (contract, dim), Timestamp::now())
}

/// Adds the spare generation of a collection, which is as old as that.
pub fn insert_spare(
    connection: &Connection,
    serving: &CollectionRow,
    contract: Contract,
    dim: usize,
) -> rusqlite::Result<CollectionRow> {
    let name = &serving.name;
    let row = insert(connection, name, &format!("{SPARE}{name}"), (contract, dim), serving.created)?;
    Ok(CollectionRow { spare: true, ..row })
}

fn insert(
    connection: &Connection,
    name: &CollectionName,
    stored: &str,
    (contract, dim): (Contract, usize),
    created: Timestamp,
) -> rusqlite::Result<CollectionRow> {
    let name = name.clone();
    connection.execute(
        "INSERT INTO collections (name, contract, dim, created) VALUES (?1, ?2, ?3, ?4)",
        (stored, contract.to_bytes(), dim as i64, created.0),
    )?;
    Ok(CollectionRow { key: connection.last_insert_rowid(), name, contract, dim, created, spare: false })
}

/// Makes the spare generation serve, and the serving one the spare.
pub fn exchange_names(
    connection: &Connection,
    serving: &CollectionRow,
    spare: &CollectionRow,
) -> rusqlite::Result<()> {
    let name = serving.name.as_str();
    let mut statement = connection.prepare_cached("UPDATE collections SET name = ?2 WHERE key = ?1")?;
    // Names are unique, so one has to step aside.
    statement.execute((serving.key, format!("{SPARE}{SPARE}{name}")))?;
    statement.execute((spare.key, name))?;
    statement.execute((serving.key, format!("{SPARE}{name}")))?;
    Ok(())
}

/// Deletes what of a spare is not the state that serves; gives the ids.
pub fn delete_stale(connection: &Connection, serving: i64, spare: i64) -> rusqlite::Result<Vec<ItemId>> {
    let mut statement = connection.prepare_cached(
        "DELETE FROM items WHERE collection = ?2 AND EXISTS
            (SELECT 1 FROM items a WHERE a.collection = ?1 AND a.id = items.id AND a.seq != items.seq)
         RETURNING id",
    )?;
    let ids = statement.query_map([serving, spare], |row| {
        ItemId::new(row.get_ref(0)?.as_str()?).map_err(|error| foreign(0, error))
    })?;
    ids.collect()
}

/// Copies an item from one generation to another with a vector of the other's, if it is still that of `seq`; gives
/// its metadata then.
pub fn copy_with(
    connection: &Connection,
    from: i64,
    into: i64,
    id: &ItemId,
    seq: u64,
    vector: &Embedding,
) -> rusqlite::Result<Option<Metadata>> {
    let mut statement = connection
        .prepare_cached("SELECT key, metadata FROM items WHERE collection = ?1 AND id = ?2 AND seq = ?3")?;
    let found = statement
        .query_row((from, id.as_str(), seq as i64), |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })
        .optional()?;
    let Some((old, metadata)) = found else { return Ok(None) };
    let vector: Vec<u8> = vector.as_slice().iter().flat_map(|value| value.to_le_bytes()).collect();
    let checksum = checksum(id.as_str(), &metadata, &vector);
    let mut statement = connection.prepare_cached(
        "INSERT INTO items
            (collection, id, vector, metadata, content_hash, checksum, seq, revision, created, updated)
         SELECT ?2, id, ?3, metadata, content_hash, ?4, seq, revision, created, updated FROM items WHERE key = ?1
         ON CONFLICT (collection, id) DO UPDATE SET
            vector = excluded.vector, metadata = excluded.metadata, content_hash = excluded.content_hash,
            checksum = excluded.checksum, seq = excluded.seq, revision = excluded.revision,
            created = excluded.created, updated = excluded.updated
         RETURNING key",
    )?;
    let new: i64 = statement.query_row((old, into, &vector, checksum), |row| row.get(0))?;
    connection.prepare_cached("DELETE FROM thumbnails WHERE item = ?1")?.execute([new])?;
    connection
        .prepare_cached("INSERT INTO thumbnails SELECT ?2, jpeg FROM thumbnails WHERE item = ?1")?
        .execute([old, new])?;
    Ok(Some(Metadata::from_stored(metadata)))
}

/// What is kept of an item's picture: the file before the thumbnail.
pub fn kept_picture(
    connection: &Connection,
    collection: i64,
    id: &ItemId,
) -> rusqlite::Result<Option<KeptPicture>> {
    let mut statement = connection.prepare_cached(
        "SELECT file FROM pictures JOIN items ON hash = content_hash WHERE collection = ?1 AND id = ?2",
    )?;
    let file = statement.query_row((collection, id.as_str()), |row| row.get::<_, Vec<u8>>(0)).optional()?;
    match file {
        Some(file) => Ok(Some(KeptPicture::Original(file.into()))),
        None => {
            Ok(thumbnail(connection, collection, id)?.map(|Thumbnail(jpeg)| KeptPicture::Thumbnail(jpeg)))
        }
    }
}

/// Deletes a collection with all that is in it.
pub fn delete_collection(connection: &Connection, key: i64) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM collections WHERE key = ?1", [key]).map(drop)
}

/// The number of the last write.
pub fn last_seq(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT value FROM counters WHERE name = 'seq'", [], |row| unsigned(row, 0))
}

/// Keeps the number of the last write.
pub fn set_last_seq(connection: &Connection, seq: u64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE counters SET value = ?1 WHERE name = 'seq'")?
        .execute([seq as i64])
        .map(drop)
}

/// CRC-32 over all that makes a neighbour.
fn checksum(id: &str, metadata: &str, vector: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    // No id and no JSON text has a zero byte in it, so the parts cannot be mistaken for each other.
    [id.as_bytes(), &[0], metadata.as_bytes(), &[0], vector].iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// Writes an item; tells whether its id was new.
pub fn upsert(connection: &Connection, collection: i64, item: &NewItem, seq: u64) -> rusqlite::Result<bool> {
    let vector: Vec<u8> = item.vector.as_slice().iter().flat_map(|value| value.to_le_bytes()).collect();
    let (id, metadata) = (item.id.as_str(), item.metadata.as_str());
    let mut statement = connection.prepare_cached(
        "INSERT INTO items
            (collection, id, vector, metadata, content_hash, checksum, seq, revision, created, updated)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 1, ?8, ?8)
         ON CONFLICT (collection, id) DO UPDATE SET
            vector = excluded.vector, metadata = excluded.metadata, content_hash = excluded.content_hash,
            checksum = excluded.checksum, seq = excluded.seq, revision = revision + 1, updated = excluded.updated
         RETURNING key, revision",
    )?;
    let checksum = checksum(id, metadata, &vector);
    let (key, revision): (i64, i64) = statement.query_row(
        (
            collection,
            id,
            &vector,
            metadata,
            item.content_hash.as_bytes(),
            checksum,
            seq as i64,
            Timestamp::now().0,
        ),
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    match &item.thumbnail {
        Some(Thumbnail(jpeg)) => {
            connection
                .prepare_cached("INSERT OR REPLACE INTO thumbnails VALUES (?1, ?2)")?
                .execute((key, &**jpeg))?;
        }
        None if revision > 1 => {
            connection.prepare_cached("DELETE FROM thumbnails WHERE item = ?1")?.execute([key])?;
        }
        None => {}
    }
    if let Some(file) = &item.picture {
        connection
            .prepare_cached("INSERT OR IGNORE INTO pictures VALUES (?1, ?2)")?
            .execute((item.content_hash.as_bytes(), &**file))?;
    }
    Ok(revision == 1)
}

/// Deletes an item; tells whether it was there.
pub fn delete(connection: &Connection, collection: i64, id: &ItemId) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare_cached("DELETE FROM items WHERE collection = ?1 AND id = ?2")?;
    statement.execute((collection, id.as_str())).map(|count| count > 0)
}

/// An item whose content may not fit its checksum.
pub enum Checked<T> {
    /// It fits.
    Sound(T),
    /// It does not; only the id is told.
    Damaged(String),
}

fn item(row: &Row<'_>, contract: Contract) -> rusqlite::Result<Checked<Item>> {
    let (id, metadata) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?);
    let damaged = || Ok(Checked::Damaged(id.to_owned()));
    let rusqlite::types::ValueRef::Blob(vector) = row.get_ref(2)? else {
        return without_vector(row, contract);
    };
    if checksum(id, metadata, vector) != row.get(3).unwrap_or(0) {
        return damaged();
    }
    let Ok(vector) = Embedding::from_normalised(floats(vector)) else { return damaged() };
    Ok(match without_vector(row, contract)? {
        Checked::Sound(item) => Checked::Sound(Item { vector: Some(vector), ..item }),
        damaged => damaged,
    })
}

fn without_vector(row: &Row<'_>, contract: Contract) -> rusqlite::Result<Checked<Item>> {
    let (id, metadata) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?);
    let Ok(item_id) = ItemId::new(id) else { return Ok(Checked::Damaged(id.to_owned())) };
    Ok(Checked::Sound(Item {
        id: item_id,
        vector: None,
        contract,
        metadata: Metadata::from_stored(metadata.to_owned()),
        content_hash: ContentHash::from_bytes(row.get(4)?),
        seq: unsigned(row, 5)?,
        created: Timestamp(row.get(6)?),
        updated: Timestamp(row.get(7)?),
        has_thumbnail: row.get(8)?,
    }))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect()
}

/// One item with its vector.
pub fn get(
    connection: &Connection,
    collection: &CollectionRow,
    id: &ItemId,
) -> rusqlite::Result<Option<Checked<Item>>> {
    let mut statement = connection.prepare_cached(
        "SELECT id, metadata, vector, checksum, content_hash, seq, created, updated,
            EXISTS (SELECT 1 FROM thumbnails WHERE item = key)
         FROM items WHERE collection = ?1 AND id = ?2",
    )?;
    statement.query_row((collection.key, id.as_str()), |row| item(row, collection.contract)).optional()
}

/// Items in the order of their ids. One that does not fit its checksum has no vector: the others can be read on.
pub fn list(
    connection: &Connection,
    collection: &CollectionRow,
    after: Option<&ItemId>,
    limit: usize,
    vectors: bool,
) -> rusqlite::Result<Vec<Checked<Item>>> {
    let mut statement = connection.prepare_cached(
        "SELECT id, metadata, iif(?4, vector, NULL), checksum, content_hash, seq, created, updated,
            EXISTS (SELECT 1 FROM thumbnails WHERE item = key)
         FROM items WHERE collection = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
    )?;
    let after = after.map_or("", ItemId::as_str);
    let read = |row: &Row<'_>| match item(row, collection.contract)? {
        Checked::Damaged(id) => {
            tracing::warn!(id, "an item does not fit its checksum: it is listed without its vector");
            without_vector(row, collection.contract)
        }
        sound => Ok(sound),
    };
    statement.query_map((collection.key, after, limit as i64, vectors), read)?.collect()
}

/// The thumbnail of one item.
pub fn thumbnail(
    connection: &Connection,
    collection: i64,
    id: &ItemId,
) -> rusqlite::Result<Option<Thumbnail>> {
    let mut statement = connection.prepare_cached(
        "SELECT jpeg FROM thumbnails JOIN items ON item = key WHERE collection = ?1 AND id = ?2",
    )?;
    let jpeg = statement.query_row((collection, id.as_str()), |row| row.get::<_, Vec<u8>>(0)).optional()?;
    Ok(jpeg.map(|jpeg| Thumbnail(jpeg.into())))
}

/// Gives an item's metadata and vector to `take`, read into `vector`, where it is there and not damaged.
pub fn vector(
    connection: &Connection,
    collection: &CollectionRow,
    id: &ItemId,
    vector: &mut [f32],
    take: impl FnOnce(&str, &[f32]),
) -> rusqlite::Result<()> {
    let mut statement = connection
        .prepare_cached("SELECT metadata, vector, checksum FROM items WHERE collection = ?1 AND id = ?2")?;
    let mut rows = statement.query((collection.key, id.as_str()))?;
    let Some(row) = rows.next()? else { return Ok(()) };
    let (metadata, bytes) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_blob()?);
    if bytes.len() == vector.len() * 4 && checksum(id.as_str(), metadata, bytes) == row.get::<_, u32>(2)? {
        read_floats(bytes, vector);
        take(metadata, vector);
    }
    Ok(())
}

fn read_floats(bytes: &[u8], into: &mut [f32]) {
    for (value, bytes) in into.iter_mut().zip(bytes.chunks_exact(4)) {
        *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
}

/// Gives every item's id, write, vector and metadata to `take`, or its id alone when it is damaged.
pub fn scan(
    connection: &Connection,
    collection: &CollectionRow,
    mut take: impl FnMut(Checked<(ItemId, u64, &[f32], Metadata)>),
) -> rusqlite::Result<()> {
    // In the order in which they lie there. Sorted here, since SQLite would sort whole rows, by way of files.
    let mut statement = connection.prepare("SELECT key FROM items WHERE collection = ?1")?;
    let keys = statement.query_map([collection.key], |row| row.get(0))?;
    let mut keys = keys.collect::<rusqlite::Result<Vec<i64>>>()?;
    keys.sort_unstable();
    let mut statement =
        connection.prepare("SELECT id, metadata, vector, checksum, seq FROM items WHERE key = ?1")?;
    let mut vector = vec![0f32; collection.dim];
    for key in keys {
        let mut rows = statement.query([key])?;
        let Some(row) = rows.next()? else { continue };
        let (id, metadata) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?);
        let bytes = row.get_ref(2)?.as_blob()?;
        let sound =
            bytes.len() == vector.len() * 4 && checksum(id, metadata, bytes) == row.get::<_, u32>(3)?;
        match ItemId::new(id) {
            Ok(item) if sound => {
                read_floats(bytes, &mut vector);
                let metadata = Metadata::from_stored(metadata.to_owned());
                take(Checked::Sound((item, unsigned(row, 4)?, &vector, metadata)));
            }
            _ => take(Checked::Damaged(id.to_owned())),
        }
    }
    Ok(())
}
