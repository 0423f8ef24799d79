//! The index: a collection's vectors in memory, scanned exactly.
//!
//! It is derived from the database and holds nothing that cannot be built again. A scan compares 8-bit codes
//! first and reads the f32 vector of every item whose score could, by a proven bound, still be among the
//! best: results are those of the full scan, at a fraction of the memory traffic. Every segment of 1024 rows
//! has its own lock, held for microseconds, so searches and writes do not wait for each other.

mod kernels;
mod lines;
mod quantise;
mod segment;
mod top;

pub use kernels::Level;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use rayon::prelude::*;

use self::segment::{Prepared, SEGMENT_ROWS, Segment};
use self::top::{Bar, Top, merge};
use super::filter::{CompiledFilter, FieldNames, Fields};
use super::{ItemId, Metadata, Neighbour, Query};

/// How vectors are compared. Both are exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// 8-bit codes first, f32 for what could be among the best: a quarter more memory, several times faster.
    #[default]
    Quantised,
    /// f32 only.
    Float,
}

impl Precision {
    /// For logs and figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quantised => "int8+f32",
            Self::Float => "f32",
        }
    }
}

/// What a search tells of an item, and what a filter asks.
pub(crate) struct Row {
    pub id: ItemId,
    pub metadata: Metadata,
    pub fields: Fields,
}

impl Row {
    fn bytes(&self) -> usize {
        // The id is here and in the map, once as text and twice as a pointer.
        self.id.as_str().len() + self.metadata.as_str().len() + self.fields.bytes() + 96
    }
}

type Segments = Arc<Vec<Arc<RwLock<Segment>>>>;

/// Where the items are, and which rows are empty. Held for the whole of a change.
#[derive(Default)]
struct Places {
    of: HashMap<ItemId, usize>,
    free: Vec<usize>,
    rows: usize,
}

/// All vectors of one collection.
pub struct CollectionIndex {
    dim: usize,
    precision: Precision,
    level: Level,
    segments: RwLock<Segments>,
    names: RwLock<FieldNames>,
    places: Mutex<Places>,
    items: AtomicUsize,
}

impl CollectionIndex {
    /// Bytes that one thread scans alone; above, the work is shared out.
    const BYTES_ALONE: usize = 8 * 1024 * 1024;

    /// An empty index of vectors of length `dim`.
    pub fn new(dim: usize, precision: Precision, level: Level) -> Self {
        Self {
            dim,
            precision,
            level,
            segments: RwLock::default(),
            names: RwLock::default(),
            places: Mutex::default(),
            items: AtomicUsize::new(0),
        }
    }

    /// Items.
    pub fn len(&self) -> usize {
        self.items.load(Ordering::Relaxed)
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts an item in, in place of the one with its id. The vector has the index's length.
    pub fn put(&self, id: &ItemId, vector: &[f32], metadata: &Metadata) {
        debug_assert_eq!(vector.len(), self.dim);
        let fields = if metadata.as_str() == "{}" {
            Fields::default()
        } else {
            Fields::of(&metadata.to_map(), &mut self.names.write())
        };
        let row = Row { id: id.clone(), metadata: metadata.clone(), fields };
        let mut places = self.places.lock();
        let place = match places.of.get(id) {
            Some(&place) => place,
            None => self.new_place(&mut places, id),
        };
        let segment = Arc::clone(&self.segments.read()[place / SEGMENT_ROWS]);
        segment.write().put(place % SEGMENT_ROWS, vector, row);
    }

    fn new_place(&self, places: &mut Places, id: &ItemId) -> usize {
        let place = places.free.pop().unwrap_or_else(|| {
            places.rows += 1;
            places.rows - 1
        });
        places.of.insert(id.clone(), place);
        self.items.store(places.of.len(), Ordering::Relaxed);
        let mut segments = self.segments.write();
        if place / SEGMENT_ROWS == segments.len() {
            Arc::make_mut(&mut segments).push(Arc::new(RwLock::new(Segment::new(self.dim, self.precision))));
        }
        place
    }

    /// Takes an item out, if it is there.
    pub fn remove(&self, id: &ItemId) {
        let mut places = self.places.lock();
        let Some(place) = places.of.remove(id) else { return };
        self.items.store(places.of.len(), Ordering::Relaxed);
        let segment = Arc::clone(&self.segments.read()[place / SEGMENT_ROWS]);
        segment.write().clear(place % SEGMENT_ROWS);
        places.free.push(place);
        // Empty rows cost scanning time: never more than half, beyond one segment.
        if places.free.len() > places.rows / 2 && places.free.len() > SEGMENT_ROWS {
            self.compact(&mut places);
        }
    }

    /// Moves the items together into new segments; scans that run meanwhile finish on the old ones.
    fn compact(&self, places: &mut Places) {
        let mut packed = Vec::with_capacity(places.of.len().div_ceil(SEGMENT_ROWS));
        let mut current = Segment::new(self.dim, self.precision);
        *places = Places::default();
        let old = Arc::clone(&self.segments.read());
        for segment in old.iter() {
            for (vector, row) in segment.read().items(self.dim) {
                let row =
                    Row { id: row.id.clone(), metadata: row.metadata.clone(), fields: row.fields.clone() };
                places.of.insert(row.id.clone(), places.rows);
                places.rows += 1;
                current.put(current.len(), vector, row);
                if current.len() == SEGMENT_ROWS {
                    let full = std::mem::replace(&mut current, Segment::new(self.dim, self.precision));
                    packed.push(Arc::new(RwLock::new(full)));
                }
            }
        }
        if current.len() > 0 {
            packed.push(Arc::new(RwLock::new(current)));
        }
        *self.segments.write() = Arc::new(packed);
    }

    /// The nearest items, best first. Runs on the calling thread, and when there is much to scan on its rayon
    /// pool's other threads too. The query's vector has the index's length.
    pub fn search(&self, query: &Query) -> Vec<Neighbour> {
        let filter = query.filter.as_ref().map(|filter| CompiledFilter::new(filter, &self.names.read()));
        let prepared = Prepared::new(query, self.level, filter);
        let segments = Arc::clone(&self.segments.read());
        let bar = Bar::new(query.min_score);
        let scan = |segments: &[Arc<RwLock<Segment>>]| {
            let (mut top, mut dots) = (Top::new(query.k, &bar), Vec::new());
            segments.iter().for_each(|segment| segment.read().scan(&prepared, &mut top, &mut dots));
            top.into_vec()
        };
        let width = if self.precision == Precision::Float { size_of::<f32>() } else { 1 };
        let alone = (Self::BYTES_ALONE / (SEGMENT_ROWS * self.dim * width)).max(1);
        let found = if segments.len() <= alone {
            scan(&segments)
        } else {
            let share = segments.len().div_ceil(rayon::current_num_threads() * 2).max(alone);
            segments.par_chunks(share).flat_map_iter(scan).collect()
        };
        merge(query.k, found)
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        let segments = Arc::clone(&self.segments.read());
        let rows: usize = segments.iter().map(|segment| segment.read().bytes()).sum();
        rows + self.names.read().bytes()
    }
}

#[cfg(test)]
mod tests;
