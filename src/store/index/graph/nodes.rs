//! Nodes: the codes and links of a graph's rows, in chunks, so that growing copies none of them.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::super::kernels::prefetch;
use super::super::lines::Rows;
use super::probe::{Measure, Probe, encode};

/// Links of a node in the layers above the lowest, at most.
pub const M: usize = 16;
/// Links of a node in the lowest layer, at most.
pub const M0: usize = 2 * M;
/// No row.
pub const NONE: u32 = u32::MAX;

const CHUNK_ROWS: usize = 4096;

/// The neighbours of a node in one layer, ended by [`NONE`].
///
/// Whoever changes them holds the node's lock; whoever reads them holds none, and may see some of the old and
/// some of the new ones: each is a node that was near.
#[repr(C, align(64))]
pub struct Links<const N: usize>([AtomicU32; N]);

impl<const N: usize> Links<N> {
    fn new() -> Self {
        Self([const { AtomicU32::new(NONE) }; N])
    }

    /// The neighbours.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|link| link.load(Relaxed)).take_while(|&link| link != NONE)
    }

    /// Sets all of them.
    pub fn set(&self, rows: impl IntoIterator<Item = u32>) {
        let rows = rows.into_iter().chain(std::iter::repeat(NONE));
        self.0.iter().zip(rows).for_each(|(link, row)| link.store(row, Relaxed));
    }

    /// Adds one where there is room for it; tells whether there was.
    pub fn add(&self, row: u32) -> bool {
        let free = self.0.iter().find(|link| link.load(Relaxed) == NONE);
        free.inspect(|link| link.store(row, Relaxed)).is_some()
    }

    /// Puts one in the place of another.
    pub fn exchange(&self, old: u32, new: u32) {
        if let Some(link) = self.0.iter().find(|link| link.load(Relaxed) == old) {
            link.store(new, Relaxed);
        }
    }
}

struct Chunk {
    codes: Rows<u8>,
    measures: Vec<Measure>,
    lowest: Vec<Links<M0>>,
    /// The layers above the lowest of each node.
    upper: Vec<Box<[Links<M>]>>,
    /// Which rows are nodes.
    there: Vec<bool>,
}

impl Chunk {
    fn new(dim: usize) -> Self {
        let mut codes = Rows::new(dim);
        codes.grow(CHUNK_ROWS);
        Self {
            codes,
            measures: vec![Measure::default(); CHUNK_ROWS],
            lowest: (0..CHUNK_ROWS).map(|_| Links::new()).collect(),
            upper: (0..CHUNK_ROWS).map(|_| Box::default()).collect(),
            there: vec![false; CHUNK_ROWS],
        }
    }
}

/// All nodes, by row.
pub struct Nodes {
    dim: usize,
    chunks: Vec<Chunk>,
}

impl Nodes {
    /// None.
    pub fn new(dim: usize) -> Self {
        Self { dim, chunks: Vec::new() }
    }

    /// Rows that there is room for.
    pub fn rows(&self) -> usize {
        self.chunks.len() * CHUNK_ROWS
    }

    fn at(&self, row: u32) -> (&Chunk, usize) {
        (&self.chunks[row as usize / CHUNK_ROWS], row as usize % CHUNK_ROWS)
    }

    fn at_mut(&mut self, row: u32) -> (&mut Chunk, usize) {
        (&mut self.chunks[row as usize / CHUNK_ROWS], row as usize % CHUNK_ROWS)
    }

    /// Puts a node in, without links, that reaches up to layer `top`.
    pub fn put(&mut self, row: u32, vector: &[f32], centre: &[f32], top: usize) {
        self.reserve(row as usize + 1);
        self.reach(row, top);
        self.encode(row, vector, centre);
    }

    /// Makes room for so many rows.
    pub fn reserve(&mut self, rows: usize) {
        while self.rows() < rows {
            self.chunks.push(Chunk::new(self.dim));
        }
    }

    /// Makes a row a node, without links, that reaches up to layer `top`.
    pub fn reach(&mut self, row: u32, top: usize) {
        let (chunk, at) = self.at_mut(row);
        chunk.lowest[at].set([]);
        chunk.upper[at] = (0..top).map(|_| Links::new()).collect();
        chunk.there[at] = true;
    }

    /// Sets the codes of a node.
    pub fn encode(&mut self, row: u32, vector: &[f32], centre: &[f32]) {
        let (chunk, at) = self.at_mut(row);
        chunk.measures[at] = encode(vector, centre, chunk.codes.row_mut(at));
    }

    /// What the codes of a node stand for.
    pub fn decode(&self, row: u32, centre: &[f32], into: &mut [f32]) {
        let (chunk, at) = self.at(row);
        let (step, codes) = (chunk.measures[at].step, chunk.codes.row(at));
        for ((value, &centre), &raised) in into.iter_mut().zip(centre).zip(codes) {
            *value = centre + (f32::from(raised) - 128.0) * step;
        }
    }

    /// Whether a row is a node.
    pub fn has(&self, row: u32) -> bool {
        let chunk = self.chunks.get(row as usize / CHUNK_ROWS);
        chunk.is_some_and(|chunk| chunk.there[row as usize % CHUNK_ROWS])
    }

    /// Takes a node out that no other links to.
    pub fn clear(&mut self, row: u32) {
        let (chunk, at) = self.at_mut(row);
        chunk.lowest[at].set([]);
        chunk.upper[at] = Box::default();
        chunk.there[at] = false;
    }

    /// The highest layer of a node.
    pub fn top(&self, row: u32) -> usize {
        let (chunk, at) = self.at(row);
        chunk.upper[at].len()
    }

    /// How near a node is to a probe.
    #[inline]
    pub fn similarity(&self, probe: &Probe, row: u32) -> f32 {
        let (chunk, at) = self.at(row);
        probe.similarity(chunk.codes.row(at), chunk.measures[at])
    }

    /// Points a probe at a node.
    pub fn aim(&self, probe: &mut Probe, row: u32) {
        let (chunk, at) = self.at(row);
        probe.aim(chunk.codes.row(at), chunk.measures[at]);
    }

    /// Asks for what [`Self::similarity`] will read.
    #[inline]
    pub fn prefetch(&self, row: u32) {
        let (chunk, at) = self.at(row);
        prefetch(chunk.codes.row(at));
        prefetch(&chunk.measures[at..=at]);
    }

    /// Calls `each` with the neighbours of a node in a layer; none where the node does not reach that layer.
    #[inline]
    pub fn neighbours(&self, row: u32, layer: usize, mut each: impl FnMut(u32)) {
        let (chunk, at) = self.at(row);
        match layer.checked_sub(1) {
            None => chunk.lowest[at].iter().for_each(&mut each),
            Some(above) => {
                if let Some(links) = chunk.upper[at].get(above) {
                    links.iter().for_each(&mut each);
                }
            }
        }
    }

    /// Sets the neighbours of a node in a layer. The caller holds the node's lock.
    pub fn set(&self, row: u32, layer: usize, neighbours: impl IntoIterator<Item = u32>) {
        let (chunk, at) = self.at(row);
        match layer.checked_sub(1) {
            None => chunk.lowest[at].set(neighbours),
            Some(above) => {
                if let Some(links) = chunk.upper[at].get(above) {
                    links.set(neighbours);
                }
            }
        }
    }

    /// Adds a neighbour where there is room for it. The caller holds the node's lock.
    pub fn add(&self, row: u32, layer: usize, neighbour: u32) -> bool {
        let (chunk, at) = self.at(row);
        match layer.checked_sub(1) {
            None => chunk.lowest[at].add(neighbour),
            Some(above) => chunk.upper[at].get(above).is_none_or(|links| links.add(neighbour)),
        }
    }

    /// Puts a neighbour in the lowest layer in place of another. The caller holds the node's lock.
    pub fn exchange(&self, row: u32, old: u32, new: u32) {
        let (chunk, at) = self.at(row);
        chunk.lowest[at].exchange(old, new);
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        let each = size_of::<Links<M0>>() + size_of::<Measure>() + size_of::<Box<[Links<M>]>>();
        let of = |chunk: &Chunk| {
            let upper: usize = chunk.upper.iter().map(|layers| layers.len() * size_of::<Links<M>>()).sum();
            chunk.codes.bytes() + CHUNK_ROWS * each + upper
        };
        self.chunks.iter().map(of).sum()
    }
}
