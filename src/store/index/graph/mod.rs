//! The graph: a hierarchical navigable small world over 8-bit codes (Malkov & Yashunin 2016).
//!
//! Its nodes are the rows of the index, and it answers which rows are near, by their codes; the index compares
//! their f32 vectors and knows which of them are items. A row that is an item no more stays as a way to others
//! until [`Graph::forget`] leads the ways around it. Walks take one shared lock each and no other; linking takes
//! the same and a short one for each node it changes. Alone are only those who add or free memory.

mod link;
mod nodes;
mod probe;
mod repair;
mod walk;

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};

pub use self::link::Linker;
use self::link::mix;
pub use self::nodes::M0;
use self::nodes::{M, NONE, Nodes};
pub use self::probe::Probe;
pub use self::walk::Hit;
use self::walk::Walker;
use super::kernels::Level;

/// Nodes that a new node's neighbours are chosen from (efConstruction).
pub const EF_BUILD: usize = 100;
/// Nodes of the layer above from which a walk of the lowest begins: where vectors lie in clusters, one alone
/// may begin in the wrong one.
const EF_ABOVE: usize = 8;
const LOCKS: usize = 1024;
/// Layers above the lowest, at most.
pub const LAYERS: usize = 12;

/// Where walks begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    row: u32,
    top: usize,
}

impl Entry {
    /// Where a walk of `layer` begins: what those of the layers above find.
    fn descend(self, nodes: &Nodes, probe: &Probe, layer: usize, walker: &mut Walker) -> Vec<u32> {
        let mut starts = vec![self.row];
        for above in (layer + 1..=self.top).rev() {
            walker.walk(nodes, probe, &starts, above, if above == 1 { EF_ABOVE } else { 1 });
            starts.clear();
            starts.extend(walker.found.iter().map(|hit| hit.row()));
        }
        starts
    }
}

/// The entry, shared.
struct SharedEntry(AtomicU64);

impl SharedEntry {
    fn get(&self) -> Entry {
        let both = self.0.load(Ordering::Acquire);
        Entry { row: both as u32, top: (both >> 32) as usize }
    }

    fn replace(&self, old: Entry, new: Entry) -> bool {
        let both = |entry: Entry| (entry.top as u64) << 32 | u64::from(entry.row);
        self.0.compare_exchange(both(old), both(new), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Takes a node that reaches higher.
    fn raise(&self, new: Entry) {
        loop {
            let old = self.get();
            if (old.row != NONE && new.top <= old.top) || self.replace(old, new) {
                return;
            }
        }
    }
}

/// The graph of an index.
pub struct Graph {
    level: Level,
    centre: Vec<f32>,
    nodes: RwLock<Nodes>,
    entry: SharedEntry,
    locks: Box<[Mutex<()>]>,
}

thread_local! {
    static WALKER: RefCell<Walker> = RefCell::default();
}

impl Graph {
    /// Without nodes. Codes are of vectors less the centre, which is best near their mean.
    pub fn new(centre: Vec<f32>, level: Level) -> Self {
        Self {
            level,
            nodes: RwLock::new(Nodes::new(centre.len())),
            centre,
            entry: SharedEntry(AtomicU64::new(u64::from(NONE))),
            locks: (0..LOCKS).map(|_| Mutex::default()).collect(),
        }
    }

    fn dim(&self) -> usize {
        self.centre.len()
    }

    fn level(&self) -> Level {
        self.level
    }

    fn lock(&self, row: u32) -> MutexGuard<'_, ()> {
        self.locks[row as usize % LOCKS].lock()
    }

    /// Puts nodes in, which are found once they are linked. A row that is a node already must not be among them.
    pub fn put<'a>(&self, rows: impl IntoIterator<Item = (u32, &'a [f32])>) {
        let mut nodes = self.nodes.write();
        for (row, vector) in rows {
            nodes.put(row, vector, &self.centre, layers(row));
        }
    }

    /// The `ef` nearest nodes that a walk meets, about, the nearest first.
    pub fn near(&self, vector: &[f32], ef: usize) -> Vec<Hit> {
        let entry = self.entry.get();
        if entry.row == NONE {
            return Vec::new();
        }
        let probe = self.probe(vector);
        let walk = |walker: &mut Walker| {
            let nodes = self.nodes.read();
            // Under the lock, because a row may be freed only without it.
            let entry = self.entry.get();
            if entry.row != NONE {
                let starts = entry.descend(&nodes, &probe, 0, walker);
                walker.walk(&nodes, &probe, &starts, 0, ef);
            }
            std::mem::take(&mut walker.found)
        };
        WALKER.with(|walker| match walker.try_borrow_mut() {
            Ok(mut walker) => walk(&mut walker),
            Err(_) => walk(&mut Walker::default()),
        })
    }

    /// What a vector is to be compared with rows by.
    pub fn probe(&self, vector: &[f32]) -> Probe {
        let mut probe = Probe::new(self.dim(), self.level);
        probe.aim_at(vector, &self.centre);
        probe
    }

    /// How near a node is to a probe: minus half the squared distance. The worst of a row that is no node.
    pub fn similarity(&self, probe: &Probe, row: u32) -> f32 {
        let nodes = self.nodes.read();
        if nodes.has(row) { nodes.similarity(probe, row) } else { f32::NEG_INFINITY }
    }

    /// What the codes of a row stand for; tells whether there are any.
    pub fn decode(&self, row: u32, into: &mut [f32]) -> bool {
        let nodes = self.nodes.read();
        nodes.has(row) && {
            nodes.decode(row, &self.centre, into);
            true
        }
    }

    /// What is taken off vectors before they are coded.
    pub fn centre(&self) -> &[f32] {
        &self.centre
    }

    /// The links of a row in each of its layers, the lowest first; none of a row that is no node.
    pub fn links(&self, row: u32) -> Vec<Vec<u32>> {
        let nodes = self.nodes.read();
        let layers = if nodes.has(row) { 0..=nodes.top(row) } else { return Vec::new() };
        let links = |layer| {
            let mut links = Vec::new();
            nodes.neighbours(row, layer, |other| links.push(other));
            links
        };
        layers.map(links).collect()
    }

    /// Takes links over; the codes of their nodes are to follow.
    pub fn restore(&self, rows: usize, all: impl Iterator<Item = Vec<Vec<u32>>>) {
        let mut nodes = self.nodes.write();
        nodes.reserve(rows);
        for (row, layers) in (0..).zip(all) {
            if let Some(top) = layers.len().checked_sub(1) {
                nodes.reach(row, top);
                (0..).zip(layers).for_each(|(layer, links)| nodes.set(row, layer, links));
                self.entry.raise(Entry { row, top });
            }
        }
    }

    /// Sets the codes of a node whose links were taken over.
    pub fn revive(&self, row: u32, vector: &[f32]) {
        self.nodes.write().encode(row, vector, &self.centre);
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        self.nodes.read().bytes()
    }
}

/// A number that rows next to each other do not share.
pub fn scatter(row: usize) -> u64 {
    mix(row as u64) >> 1
}

/// The highest layer of a row: one row in [`M`] reaches the next.
fn layers(row: u32) -> usize {
    let mut bits = mix(u64::from(row) ^ 0x6c74_6e64);
    let mut top = 0;
    while bits.is_multiple_of(M as u64) && top < LAYERS {
        bits /= M as u64;
        top += 1;
    }
    top
}
