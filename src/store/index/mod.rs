//! The index: a collection's vectors in memory, scanned exactly or walked through a graph.
//!
//! It is derived from the database and holds nothing that cannot be built again. A scan compares 8-bit codes
//! first and reads the f32 vector of every item whose score could, by a proven bound, still be among the
//! best: results are those of the full scan, at a fraction of the memory traffic. Where a scan would take too
//! long, [`graph`] says which rows are near, and their f32 vectors decide. Every segment of 1024 rows has its own
//! lock, held for microseconds, so searches and writes do not wait for each other.

mod approximate;
mod frozen;
mod graph;
mod half;
mod kept;
mod kernels;
mod lines;
mod linked;
mod places;
mod policy;
mod quantise;
mod reread;
mod segment;
mod source;
mod top;
mod tune;

pub use frozen::{Frozen, Owner};
pub use kept::Vectors;
pub use kernels::Level;
pub use policy::IndexChoice;
pub use source::{Source, Stored};
pub use tune::MeasuredRecall;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use rayon::prelude::*;

use self::linked::Linked;
use self::places::Places;
use self::segment::{BLOCK, Layout, Prepared, Rest, SEGMENT_ROWS, Segment, Stopped};
use self::top::{Bar, Top, merge};
use super::filter::{FieldNames, Fields};
use super::{IndexInfo, IndexKind, ItemId, Metadata, Neighbour, Query};

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

/// How the vectors of a store are kept and searched.
#[derive(Debug, Clone, Copy, Default)]
pub struct IndexOptions {
    /// How vectors are compared.
    pub precision: Precision,
    /// What of them stays in memory.
    pub vectors: Vectors,
    /// Whether collections are scanned or walked.
    pub choice: IndexChoice,
    /// Nodes that walks keep; 0 for as many as are found to do.
    pub ef: usize,
}

/// What a search tells of an item, and what a filter asks.
pub(crate) struct Row {
    pub id: ItemId,
    pub metadata: Metadata,
    pub fields: Fields,
    /// Number of the write that made it.
    pub seq: u64,
}

impl Row {
    fn bytes(&self) -> usize {
        // The id is here and in the map, once as text and twice as a pointer.
        self.id.as_str().len() + self.metadata.as_str().len() + self.fields.bytes() + 96
    }
}

type Segments = Arc<Vec<Arc<RwLock<Segment>>>>;

/// All vectors of one collection.
pub struct CollectionIndex {
    layout: Layout,
    level: Level,
    /// Where vectors are that are not kept as they came.
    source: Option<Arc<dyn Source>>,
    segments: RwLock<Segments>,
    names: RwLock<FieldNames>,
    places: Mutex<Places>,
    items: AtomicUsize,
    choice: IndexChoice,
    graph: RwLock<Option<Arc<Linked>>>,
    ef: AtomicUsize,
    fixed_ef: bool,
    recall: Recall,
}

/// What sampled searches found, and what exact ones did.
#[derive(Default)]
struct Recall {
    searches: AtomicU64,
    found: AtomicU64,
    all: AtomicU64,
    measuring: AtomicBool,
    rests_until: Mutex<Option<Instant>>,
}

/// One search in so many is compared with an exact one, at the most.
const SAMPLED: u64 = 1024;

/// How many times as long as a comparison took there is no other: of millions of items it takes as long as a thousand
/// searches.
const RESTS: u32 = 100;

/// Nodes that a walk keeps until the collection's own length was found.
const EF: usize = 128;

impl CollectionIndex {
    /// Bytes that one thread scans alone; above, the work is shared out.
    const BYTES_ALONE: usize = 8 * 1024 * 1024;

    /// An empty index of vectors of length `dim`.
    pub fn new(dim: usize, precision: Precision, level: Level) -> Self {
        let layout = Layout { dim, precision, vectors: Vectors::F32 };
        Self {
            layout,
            level,
            source: None,
            segments: RwLock::default(),
            names: RwLock::default(),
            places: Mutex::default(),
            items: AtomicUsize::new(0),
            choice: IndexChoice::Exact,
            graph: RwLock::default(),
            ef: AtomicUsize::new(EF),
            fixed_ef: false,
            recall: Recall::default(),
        }
    }

    /// An empty index with options, in the best instructions of this machine.
    pub fn with_options(dim: usize, options: IndexOptions) -> Self {
        let IndexOptions { precision, vectors, choice, .. } = options;
        // Without the vectors only codes are left to scan.
        let precision = if vectors == Vectors::Int8 { Precision::Quantised } else { precision };
        let layout = Layout { dim, precision, vectors };
        let index = Self { choice, layout, ..Self::new(dim, precision, Level::detect()) };
        if options.ef == 0 {
            return index;
        }
        Self { ef: AtomicUsize::new(options.ef), fixed_ef: true, ..index }
    }

    /// How it is searched now.
    pub fn info(&self) -> IndexInfo {
        let waiting = self.unlinked();
        let (found, all) =
            (self.recall.found.load(Ordering::Relaxed), self.recall.all.load(Ordering::Relaxed));
        IndexInfo {
            kind: if waiting.is_some() { IndexKind::Hnsw } else { IndexKind::Exact },
            waiting: waiting.unwrap_or(0) as u64,
            ef: waiting.map(|_| self.ef()),
            sampled: all,
            recall: (all > 0).then(|| found as f64 / all as f64),
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

    /// Puts an item in that write number `seq` made, in place of the one with its id. The vector has the index's length.
    pub fn put(&self, id: &ItemId, seq: u64, vector: &[f32], metadata: &Metadata) {
        debug_assert_eq!(vector.len(), self.layout.dim);
        let fields = if metadata.as_str() == "{}" {
            Fields::default()
        } else {
            Fields::of(&metadata.to_map(), &mut self.names.write())
        };
        let row = Row { id: id.clone(), metadata: metadata.clone(), fields, seq };
        let mut places = self.places.lock();
        if let Some(place) = places.revive(id, seq) {
            self.items.store(places.items(), Ordering::Relaxed);
            self.revive(place, vector, row);
            return;
        }
        let old = places.find(id);
        // The vector of a node stays, because it leads to others.
        let place = match old.filter(|&old| !places.is_node(old)) {
            Some(place) => place,
            None => self.new_place(&mut places, id),
        };
        self.segment(place).write().put(place % SEGMENT_ROWS, vector, row);
        if let Some(old) = old.filter(|&old| old != place) {
            self.empty(&mut places, old);
        }
    }

    fn revive(&self, place: usize, vector: &[f32], row: Row) {
        if let Some(linked) = self.linked() {
            linked.graph.revive(place as u32, vector);
        }
        let segment = self.segment(place);
        let mut segment = segment.write();
        segment.put(place % SEGMENT_ROWS, vector, row);
        segment.set_linked(place % SEGMENT_ROWS, true);
    }

    fn segment(&self, place: usize) -> Arc<RwLock<Segment>> {
        Arc::clone(&self.segments.read()[place / SEGMENT_ROWS])
    }

    fn new_place(&self, places: &mut Places, id: &ItemId) -> usize {
        let place = places.take(id);
        self.items.store(places.items(), Ordering::Relaxed);
        if let Some(linked) = self.linked() {
            linked.wait(place);
        }
        let mut segments = self.segments.write();
        if place / SEGMENT_ROWS == segments.len() {
            let segment = Segment::new(self.layout, segments.len() * SEGMENT_ROWS);
            Arc::make_mut(&mut segments).push(Arc::new(RwLock::new(segment)));
        }
        place
    }

    fn empty(&self, places: &mut Places, place: usize) {
        self.segment(place).write().clear(place % SEGMENT_ROWS);
        if places.release(place)
            && let Some(linked) = self.linked()
        {
            linked.arrive(place);
        }
    }

    /// Takes an item out, if it is there.
    pub fn remove(&self, id: &ItemId) {
        let mut places = self.places.lock();
        let Some(place) = places.forget(id) else { return };
        self.items.store(places.items(), Ordering::Relaxed);
        self.empty(&mut places, place);
        self.compact_if_sparse(&mut places);
    }

    /// Empty rows cost scanning time: never more than half, beyond one segment. With a graph it is its own
    /// business which rows can be moved.
    fn compact_if_sparse(&self, places: &mut Places) {
        if !places.linking && places.free() > places.rows() / 2 && places.free() > SEGMENT_ROWS {
            self.compact(places);
        }
    }

    /// Moves the items together into new segments; scans that run meanwhile finish on the old ones.
    fn compact(&self, places: &mut Places) {
        let mut packed = Vec::with_capacity(places.items().div_ceil(SEGMENT_ROWS));
        let mut current = Segment::new(self.layout, 0);
        let mut ids = Vec::with_capacity(places.items());
        let old = Arc::clone(&self.segments.read());
        for (number, segment) in old.iter().enumerate() {
            let rows: Vec<usize> = segment.read().items().map(|(at, _)| number * SEGMENT_ROWS + at).collect();
            let vectors = self.vectors(&rows, false);
            let segment = segment.read();
            for (&row, vector) in rows.iter().zip(vectors.chunks_exact(self.layout.dim)) {
                let Some(row) = segment.row(row % SEGMENT_ROWS) else { continue };
                let row = Row {
                    id: row.id.clone(),
                    metadata: row.metadata.clone(),
                    fields: row.fields.clone(),
                    seq: row.seq,
                };
                ids.push(row.id.clone());
                current.put(current.len(), vector, row);
                if current.len() == SEGMENT_ROWS {
                    let next = Segment::new(self.layout, (packed.len() + 1) * SEGMENT_ROWS);
                    let full = std::mem::replace(&mut current, next);
                    packed.push(Arc::new(RwLock::new(full)));
                }
            }
        }
        if current.len() > 0 {
            packed.push(Arc::new(RwLock::new(current)));
        }
        places.repack(ids.into_iter());
        *self.segments.write() = Arc::new(packed);
    }

    /// The nearest items, best first. Runs on the calling thread, and when there is much to scan on its rayon
    /// pool's other threads too. The query's vector has the index's length.
    pub fn search(&self, query: &Query) -> Vec<Neighbour> {
        self.search_until(query, &|| false)
    }

    /// As [`Self::search`], and breaks off, to give anything, soon after `stopped` says that nobody waits any more.
    pub fn search_until(&self, query: &Query, stopped: Stopped<'_>) -> Vec<Neighbour> {
        let prepared = self.prepare(query, stopped);
        let found = match self.linked() {
            Some(linked) => self.search_graph(&linked, query, &prepared),
            None => self.scan_all(query, &prepared),
        };
        if prepared.stopped() { Vec::new() } else { self.reread(query, found) }
    }

    /// The nearest items by a scan of all, whether or not there is a graph.
    pub fn search_exactly(&self, query: &Query) -> Vec<Neighbour> {
        let prepared = self.prepare(query, &|| false);
        self.reread(query, self.scan_all(query, &prepared))
    }

    fn scan_all(&self, query: &Query, prepared: &Prepared<'_>) -> Vec<Neighbour> {
        let segments = Arc::clone(&self.segments.read());
        let bar = Bar::new(self.least(query));
        merge(prepared.keep, self.scan(&segments, prepared, &bar, Rest::All))
    }

    /// Whether this search is one of those that recall is measured on; if so, [`Self::measure`] is to follow.
    pub fn samples(&self) -> bool {
        let number = self.recall.searches.fetch_add(1, Ordering::Relaxed);
        number.is_multiple_of(SAMPLED)
            && self.linked().is_some()
            && self.recall.rests_until.lock().is_none_or(|until| Instant::now() >= until)
            && !self.recall.measuring.swap(true, Ordering::Relaxed)
    }

    /// Searches both ways, and counts how much of what an exact search finds the usual one does.
    pub fn measure(&self, query: &Query) {
        let began = Instant::now();
        let found = self.search(query);
        let exact = self.search_exactly(query);
        let worst = exact.last().map_or(f32::INFINITY, |neighbour| neighbour.score);
        // Of equal scores any will do.
        let hits = found.iter().filter(|neighbour| neighbour.score >= worst).count().min(exact.len());
        self.recall.found.fetch_add(hits as u64, Ordering::Relaxed);
        self.recall.all.fetch_add(exact.len() as u64, Ordering::Relaxed);
        *self.recall.rests_until.lock() = Some(Instant::now() + began.elapsed() * RESTS);
        self.recall.measuring.store(false, Ordering::Relaxed);
    }

    fn scan(
        &self,
        segments: &[Arc<RwLock<Segment>>],
        prepared: &Prepared<'_>,
        bar: &Bar,
        what: Rest,
    ) -> Vec<Neighbour> {
        // A filter may take a while, and writes wait for the lock.
        let held = if prepared.filters() { BLOCK } else { SEGMENT_ROWS };
        let scan = |segments: &[Arc<RwLock<Segment>>]| {
            let (mut top, mut dots) = (Top::new(prepared.keep, bar), Vec::new());
            for segment in segments.iter().take_while(|_| !prepared.stopped()) {
                let mut segment = segment.read();
                for first in (0..SEGMENT_ROWS).step_by(held).take_while(|_| !prepared.stopped()) {
                    segment.scan(first..first + held, prepared, &mut top, &mut dots, what);
                    RwLockReadGuard::bump(&mut segment);
                }
            }
            top.into_vec()
        };
        let width = if self.layout.precision == Precision::Float { size_of::<f32>() } else { 1 };
        let alone = (Self::BYTES_ALONE / (SEGMENT_ROWS * self.layout.dim * width)).max(1);
        if segments.len() <= alone {
            return scan(segments);
        }
        let share = segments.len().div_ceil(rayon::current_num_threads() * 2).max(alone);
        segments.par_chunks(share).flat_map_iter(scan).collect()
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        let segments = Arc::clone(&self.segments.read());
        let rows: usize = segments.iter().map(|segment| segment.read().bytes()).sum();
        rows + self.names.read().bytes() + self.linked().map_or(0, |linked| linked.graph.bytes())
    }
}

#[cfg(test)]
mod graph_tests;
#[cfg(test)]
mod precision_tests;
#[cfg(test)]
mod tests;
