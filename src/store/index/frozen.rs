//! A frozen graph: its links as bytes, with which the next start need not find them again.
//!
//! It holds no vectors. Each node says which write its item was made by, so that whoever puts the items in again
//! finds their nodes; what was written since waits to be linked, and what is gone is led around.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::CollectionIndex;
use super::graph::{Graph, LAYERS, M0};
use super::linked::Linked;
use super::segment::{SEGMENT_ROWS, Segment};

/// What the bytes begin with; the last number is the version.
const MAGIC: &[u8; 12] = b"latentdgraph";
const VERSION: u32 = 1;

/// Whose graph it is. One of another is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Key of the collection.
    pub collection: i64,
    /// Its contract.
    pub contract: [u8; 8],
    /// Length of its vectors.
    pub dim: usize,
}

impl Owner {
    fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::from(*MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.collection.to_le_bytes());
        bytes.extend(self.contract);
        bytes.extend((self.dim as u64).to_le_bytes());
        bytes
    }
}

/// A frozen graph that was read.
pub struct Frozen {
    /// Number of the last write that it may know of.
    pub seq: u64,
    ef: usize,
    tuned_at: usize,
    centre: Vec<f32>,
    nodes: Vec<Node>,
}

struct Node {
    seq: u64,
    layers: Vec<Vec<u32>>,
}

/// Reads numbers from bytes; gives none at their end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<usize> {
        self.take(1).map(|byte| usize::from(byte[0]))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}

impl Frozen {
    /// Reads a frozen graph.
    ///
    /// # Errors
    /// Why the bytes are no frozen graph of this owner.
    pub fn read(bytes: &[u8], owner: Owner) -> Result<Self, &'static str> {
        let (body, sum) = bytes.split_last_chunk::<4>().ok_or("it is too short")?;
        if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
            return Err("its checksum does not fit");
        }
        let body =
            body.strip_prefix(owner.bytes().as_slice()).ok_or("it is of another version or collection")?;
        Self::parse(&mut Reader(body), owner.dim).ok_or("it makes no sense")
    }

    fn parse(reader: &mut Reader<'_>, dim: usize) -> Option<Self> {
        let (seq, ef, tuned_at) = (reader.u64()?, reader.u64()? as usize, reader.u64()? as usize);
        let count = usize::try_from(reader.u64()?).ok()?;
        let centre: Option<Vec<f32>> = (0..dim).map(|_| reader.u32().map(f32::from_bits)).collect();
        let mut nodes = Vec::with_capacity(count.min(reader.0.len()));
        for _ in 0..count {
            let (seq, layers) = (reader.u64()?, reader.byte()?);
            let links = |reader: &mut Reader<'_>| -> Option<Vec<u32>> {
                let count = reader.byte().filter(|&count| count <= M0)?;
                (0..count).map(|_| reader.u32()).collect()
            };
            let layers: Option<Vec<Vec<u32>>> = (0..layers.min(LAYERS + 2)).map(|_| links(reader)).collect();
            nodes.push(Node { seq, layers: layers? });
        }
        let whole = reader.0.is_empty()
            && nodes
                .iter()
                .flat_map(|node| node.layers.iter().flatten())
                .all(|&row| nodes.get(row as usize).is_some_and(|node| !node.layers.is_empty()));
        whole.then_some(Self { seq, ef, tuned_at, centre: centre?, nodes })
    }
}

impl CollectionIndex {
    /// Changes of the graph since it was frozen, and the items; no changes where there is no graph.
    pub fn unfrozen(&self) -> (usize, usize) {
        (self.linked().map_or(0, |linked| linked.changes.load(Ordering::Relaxed)), self.len())
    }

    /// The graph as bytes, where there is one. Not while something is being linked.
    pub fn freeze(&self, owner: Owner, seq: u64) -> Option<Vec<u8>> {
        let linked = self.linked()?;
        let segments = Arc::clone(&self.segments.read());
        let rows = segments.len() * SEGMENT_ROWS;
        let mut bytes = owner.bytes();
        bytes.reserve(rows * 128);
        for number in [seq, self.ef() as u64, linked.tuned_at.load(Ordering::Relaxed) as u64, rows as u64] {
            bytes.extend(number.to_le_bytes());
        }
        linked.graph.centre().iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        for row in 0..rows {
            let segment = segments[row / SEGMENT_ROWS].read();
            // A node without an item is led around at the next start, so its links are kept.
            let seq = segment.row(row % SEGMENT_ROWS).map_or(0, |row| row.seq);
            let layers = linked.graph.links(row as u32);
            bytes.extend(seq.to_le_bytes());
            bytes.push(layers.len() as u8);
            for links in layers {
                bytes.push(links.len() as u8);
                links.iter().for_each(|link| bytes.extend(link.to_le_bytes()));
            }
        }
        linked.changes.store(0, Ordering::Relaxed);
        let sum = crc32fast::hash(&bytes);
        bytes.extend(sum.to_le_bytes());
        Some(bytes)
    }

    /// Takes a frozen graph, before any item was put in; [`Self::thawed`] is to follow the last of them.
    pub fn thaw(&self, frozen: Frozen) {
        let Frozen { ef, tuned_at, centre, nodes, .. } = frozen;
        let mut places = self.places.lock();
        let linked = Linked::new(Graph::new(centre, self.level));
        linked.tuned_at.store(tuned_at, Ordering::Relaxed);
        if !self.fixed_ef {
            self.ef.store(ef, Ordering::Relaxed);
        }
        let rows = nodes.len().next_multiple_of(SEGMENT_ROWS);
        let segments = (0..rows / SEGMENT_ROWS).map(|number| {
            let segment = Segment::emptied(self.layout, number * SEGMENT_ROWS);
            Arc::new(parking_lot::RwLock::new(segment))
        });
        *self.segments.write() = Arc::new(segments.collect());
        let by_write: HashMap<u64, usize> = nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.seq > 0 && !node.layers.is_empty())
            .map(|(row, node)| (node.seq, row))
            .collect();
        places.thaw(rows, nodes.iter().map(|node| !node.layers.is_empty()), by_write);
        linked.graph.restore(rows, nodes.into_iter().map(|node| node.layers));
        *self.graph.write() = Some(Arc::new(linked));
    }

    /// Ends with thawing: leads around the nodes whose items did not come. Runs on the current rayon pool.
    pub fn thawed(&self) {
        let Some(linked) = self.linked() else { return };
        if self.places.lock().end_thaw() > 0 {
            self.bury(&linked);
        }
    }
}
