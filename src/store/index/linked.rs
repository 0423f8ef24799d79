//! Linking: how rows get into the graph, and out of it, while searches and writes go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rayon::prelude::*;

use super::CollectionIndex;
use super::graph::{Graph, Linker};
use super::segment::SEGMENT_ROWS;

/// Rows linked in one go: for as long a stop waits, and so much memory it takes.
const TOGETHER: usize = 512;
/// Vectors whose mean is the centre of the codes.
const CENTRE_OF: usize = 16 * 1024;
/// Nodes without an item, in per cent, beyond which they are taken out.
const MOST_DEAD: usize = 12;

/// A graph, and the segments that have items it does not lead to yet.
pub struct Linked {
    pub graph: Graph,
    waiting: Mutex<BTreeMap<usize, usize>>,
    /// Nodes when the length of walks was last found.
    pub tuned_at: AtomicUsize,
    /// Nodes that were put in since all were seen to be led to.
    pub unseen: AtomicUsize,
    /// Changes of the graph since it was frozen.
    pub changes: AtomicUsize,
}

impl Linked {
    pub fn new(graph: Graph) -> Self {
        let zero = AtomicUsize::default;
        Self { graph, waiting: Mutex::default(), tuned_at: zero(), unseen: zero(), changes: zero() }
    }

    /// The segments with items that the graph does not lead to yet.
    pub fn waiting(&self) -> Vec<usize> {
        self.waiting.lock().keys().copied().collect()
    }

    /// One more item of this row's segment waits.
    pub fn wait(&self, row: usize) {
        *self.waiting.lock().entry(row / SEGMENT_ROWS).or_default() += 1;
    }

    /// One fewer does.
    pub fn arrive(&self, row: usize) {
        let mut waiting = self.waiting.lock();
        if let Some(count) = waiting.get_mut(&(row / SEGMENT_ROWS)) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&(row / SEGMENT_ROWS));
            }
        }
    }
}

impl CollectionIndex {
    /// Does a part of what there is to do for the graph, on the current rayon pool: makes one or drops it, links
    /// what waits, takes out what is gone. Tells whether there is more to do. One thread at a time.
    pub fn tend(&self, stop: &AtomicBool) -> bool {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        let linked = self.linked();
        let wanted = self.choice.links(self.len(), self.layout.dim, self.level, linked.is_some());
        match (linked, wanted) {
            (None, false) => false,
            (None, true) => {
                self.begin();
                true
            }
            (Some(_), false) => {
                self.end();
                false
            }
            (Some(linked), true) => self.go_on(&linked, stop),
        }
    }

    fn go_on(&self, linked: &Linked, stop: &AtomicBool) -> bool {
        let (dead, free, all) = {
            let places = self.places.lock();
            (places.dead(), places.free(), places.rows())
        };
        let nodes = all - free;
        // First what must not wait until writes pause.
        if linked.unseen.load(Ordering::Relaxed) * 4 > nodes {
            self.look_for_unled(linked);
            return true;
        }
        if dead * 100 > all * MOST_DEAD * 2 {
            self.bury(linked);
            return true;
        }
        let rows = self.places.lock().claim(TOGETHER);
        if !rows.is_empty() {
            self.link(linked, &rows);
            return true;
        }
        if (dead + free) * 2 > all && dead + free > SEGMENT_ROWS {
            // Half of the memory is for nothing: from the start, in fewer segments.
            self.end();
            return true;
        }
        if dead * 100 > all * MOST_DEAD {
            self.bury(linked);
            return true;
        }
        if nodes > linked.tuned_at.load(Ordering::Relaxed) * 3 / 2 && !stop.load(Ordering::Relaxed) {
            linked.tuned_at.store(nodes, Ordering::Relaxed);
            self.tune(linked);
            return true;
        }
        false
    }

    /// Sees to it that a way leads to every item's node.
    fn look_for_unled(&self, linked: &Linked) {
        linked.unseen.store(0, Ordering::Relaxed);
        let (_, live) = self.places.lock().dead_and_live();
        let live: Vec<u32> = live.into_iter().map(|row| row as u32).collect();
        let adopted = linked.graph.adopt(&live);
        tracing::debug!(nodes = live.len(), adopted, "graph checked");
    }

    /// Begins with a graph; until it leads to an item, that is found by scanning.
    fn begin(&self) {
        let mut places = self.places.lock();
        let linked = Linked::new(Graph::new(self.centre(), self.level));
        places.begin();
        let segments = Arc::clone(&self.segments.read());
        for (at, segment) in segments.iter().enumerate() {
            let items = segment.read().items().count();
            if items > 0 {
                linked.waiting.lock().insert(at, items);
            }
        }
        *self.graph.write() = Some(Arc::new(linked));
    }

    /// Goes back to scanning alone.
    fn end(&self) {
        let mut places = self.places.lock();
        let old = self.graph.write().take();
        places.end();
        let codes = |row: usize, into: &mut [f32]| {
            let known = old.as_ref().is_some_and(|linked| linked.graph.decode(row as u32, into));
            if !known {
                into.fill(0.0);
            }
        };
        Arc::clone(&self.segments.read()).iter().for_each(|segment| segment.write().unlink(codes));
        self.compact_if_sparse(&mut places);
        drop(places);
        drop(old);
    }

    /// The mean of some vectors.
    fn centre(&self) -> Vec<f32> {
        let segments = Arc::clone(&self.segments.read());
        let every = (segments.len() * SEGMENT_ROWS).div_ceil(CENTRE_OF).max(1);
        let (mut sum, mut count) = (vec![0f64; self.layout.dim], 0f64);
        let mut vector = vec![0f32; self.layout.dim];
        for (number, segment) in segments.iter().enumerate() {
            let segment = segment.read();
            for (at, _) in segment.items().step_by(every) {
                if self.vector_of(&segment, number * SEGMENT_ROWS + at, &mut vector).is_some() {
                    sum.iter_mut().zip(&vector).for_each(|(sum, value)| *sum += f64::from(*value));
                    count += 1.0;
                }
            }
        }
        sum.into_iter().map(|sum| (sum / count.max(1.0)) as f32).collect()
    }

    fn link(&self, linked: &Linked, rows: &[usize]) {
        let segments = Arc::clone(&self.segments.read());
        // An item that is deleted meanwhile leaves its vector, as a node without an item.
        let vectors = self.vectors(rows, false);
        linked.graph.put(rows.iter().map(|&row| row as u32).zip(vectors.chunks_exact(self.layout.dim)));
        rows.par_iter().for_each_init(
            || Linker::new(&linked.graph),
            |linker, &row| {
                linked.graph.link(row as u32, linker);
                segments[row / SEGMENT_ROWS].write().set_linked(row % SEGMENT_ROWS, true);
                linked.arrive(row);
            },
        );
        linked.unseen.fetch_add(rows.len(), Ordering::Relaxed);
        linked.changes.fetch_add(rows.len(), Ordering::Relaxed);
    }

    /// Takes the nodes without an item out of the graph, and frees their rows.
    pub(super) fn bury(&self, linked: &Linked) {
        let (dead, live) = self.places.lock().dead_and_live();
        let rows = |rows: &[usize]| rows.iter().map(|&row| row as u32).collect::<Vec<u32>>();
        linked.graph.forget(&rows(&dead), &rows(&live));
        linked.unseen.fetch_add(dead.len(), Ordering::Relaxed);
        linked.changes.fetch_add(dead.len(), Ordering::Relaxed);
        self.places.lock().bury(&dead);
    }

    /// The graph, where there is one.
    pub(super) fn linked(&self) -> Option<Arc<Linked>> {
        self.graph.read().clone()
    }

    /// Whether there is something to do before searches are as they will be.
    pub fn pending(&self) -> bool {
        let has_graph = self.linked().is_some();
        let unlinked = self.unlinked().is_some_and(|waiting| waiting > 0);
        unlinked || has_graph != self.choice.links(self.len(), self.layout.dim, self.level, has_graph)
    }

    /// Items that the graph does not lead to yet, about; none where there is no graph.
    pub fn unlinked(&self) -> Option<usize> {
        let places = self.places.lock();
        places.linking.then(|| places.waiting())
    }
}
