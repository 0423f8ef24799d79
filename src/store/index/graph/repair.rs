//! Repair: leading ways around nodes that are to go, and to nodes that nobody leads to.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use rayon::prelude::*;

use super::link::{Linker, most};
use super::nodes::{NONE, Nodes};
use super::probe::Probe;
use super::walk::Walker;
use super::{EF_BUILD, Entry, Graph};

/// Most rounds of [`Graph::adopt`].
const ROUNDS: usize = 4;

/// The nodes that ways through the lowest layer lead to.
struct Reached {
    rows: Vec<bool>,
    open: Vec<u32>,
}

impl Reached {
    fn from(nodes: &Nodes, row: u32) -> Self {
        let mut reached = Self { rows: vec![false; nodes.rows()], open: Vec::new() };
        reached.spread(nodes, row);
        reached
    }

    fn has(&self, row: u32) -> bool {
        self.rows[row as usize]
    }

    fn spread(&mut self, nodes: &Nodes, row: u32) {
        let Self { rows, open } = self;
        rows[row as usize] = true;
        open.push(row);
        while let Some(row) = open.pop() {
            nodes.neighbours(row, 0, |other| {
                if !std::mem::replace(&mut rows[other as usize], true) {
                    open.push(other);
                }
            });
        }
    }
}

impl Graph {
    /// Takes rows out: whoever links to one of them gets the best of that one's neighbours instead (as
    /// FreshDiskANN does, Singh et al. 2021). `live` tells which rows are nodes and stay. Runs on the current
    /// rayon pool, beside walks, but not beside linking.
    pub fn forget(&self, dead: &[u32], live: &[u32]) {
        {
            let nodes = self.nodes.read();
            let mut gone = vec![false; nodes.rows()];
            dead.iter().for_each(|&row| gone[row as usize] = true);
            live.par_iter().for_each_init(
                || Linker::new(self),
                |linker, &row| {
                    (0..=nodes.top(row)).for_each(|at| self.lead_around(&nodes, row, at, &gone, linker))
                },
            );
            let highest = live.iter().copied().max_by_key(|&row| nodes.top(row));
            let new = highest.map_or(Entry { row: NONE, top: 0 }, |row| Entry { row, top: nodes.top(row) });
            while !self.entry.replace(self.entry.get(), new) {}
        }
        let mut nodes = self.nodes.write();
        dead.iter().for_each(|&row| nodes.clear(row));
    }

    fn lead_around(&self, nodes: &Nodes, row: u32, layer: usize, gone: &[bool], linker: &mut Linker) {
        let (mut stay, mut beyond, mut any) = (Vec::new(), Vec::new(), false);
        nodes.neighbours(row, layer, |other| {
            if gone[other as usize] {
                any = true;
                nodes.neighbours(other, layer, |far| beyond.push(far));
            } else {
                stay.push(other);
            }
        });
        if !any {
            return;
        }
        beyond.retain(|&far| !gone[far as usize] && !stay.contains(&far));
        beyond.sort_unstable();
        beyond.dedup();
        linker.consider(nodes, row, stay.into_iter().chain(beyond));
        linker.choose(nodes, most(layer));
        let _lock = self.lock(row);
        nodes.set(row, layer, linker.chosen());
    }

    /// Leads to each of `rows` that no way from the entry through the lowest layer leads to: by way of the nearest
    /// node that one leads to. Where vectors lie in clusters and come cluster by cluster, all links to a small one may be
    /// given up for nearer ones, and no walk would find it any more. Gives how many it led to. Runs on the current rayon
    /// pool, beside walks, but not beside linking.
    pub fn adopt(&self, rows: &[u32]) -> usize {
        let mut adopted = 0;
        // Whom a node is led to instead of may be left alone by that.
        for _ in 0..ROUNDS {
            let more = self.adopt_once(rows);
            adopted += more;
            if more == 0 {
                break;
            }
        }
        adopted
    }

    fn adopt_once(&self, rows: &[u32]) -> usize {
        let nodes = self.nodes.read();
        let entry = self.entry.get();
        if entry.row == NONE {
            return 0;
        }
        let mut reached = Reached::from(&nodes, entry.row);
        let lone: Vec<u32> = rows.iter().copied().filter(|&row| !reached.has(row)).collect();
        if lone.is_empty() {
            return 0;
        }
        let led: Vec<AtomicU32> = (0..nodes.rows()).map(|_| AtomicU32::new(0)).collect();
        let count = |&row: &u32| {
            nodes.neighbours(row, 0, |other| {
                led[other as usize].fetch_add(1, Relaxed);
            });
        };
        rows.par_iter().for_each(count);
        let (mut walker, mut probe) = (Walker::default(), Probe::new(self.dim(), self.level()));
        let mut adopted = 0;
        for row in lone {
            // Another that was led to may lead to it.
            if reached.has(row) {
                continue;
            }
            nodes.aim(&mut probe, row);
            let starts = entry.descend(&nodes, &probe, 0, &mut walker);
            walker.walk(&nodes, &probe, &starts, 0, EF_BUILD);
            let near = walker.found.iter().map(|hit| hit.row()).filter(|&parent| reached.has(parent));
            let parents: Vec<u32> = near.chain([entry.row]).collect();
            // First one that need give up nobody for it.
            let adds = |&parent: &u32| {
                let _lock = self.lock(parent);
                nodes.add(parent, 0, row)
            };
            if parents.iter().any(adds)
                || parents.iter().any(|&parent| self.give_up_for(&nodes, parent, row, &led))
            {
                reached.spread(&nodes, row);
                adopted += 1;
            }
        }
        adopted
    }

    /// Links `parent` to `row` in place of its last neighbour that others lead to as well.
    fn give_up_for(&self, nodes: &Nodes, parent: u32, row: u32, led: &[AtomicU32]) -> bool {
        let _lock = self.lock(parent);
        let mut spare = None;
        nodes.neighbours(parent, 0, |other| {
            if led[other as usize].load(Relaxed) > 1 {
                spare = Some(other);
            }
        });
        let Some(old) = spare else { return false };
        led[old as usize].fetch_sub(1, Relaxed);
        led[row as usize].fetch_add(1, Relaxed);
        nodes.exchange(parent, old, row);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::scatter;
    use super::*;
    use crate::store::index::Level;

    /// Ten clusters on a line, and the same links but for those from outside into the last cluster.
    fn with_an_island() -> (Graph, Vec<[f32; 4]>) {
        let jitter = |n: usize, at: usize| (scatter(n * 4 + at) % 1000) as f32 / 1e4;
        let vector = |n: usize| [(n / 100) as f32 + jitter(n, 0), jitter(n, 1), jitter(n, 2), jitter(n, 3)];
        let vectors: Vec<[f32; 4]> = (0..1000).map(vector).collect();
        let whole = Graph::new(vec![0.0; 4], Level::Portable);
        whole.put((0..).zip(vectors.iter().map(|vector| &vector[..])));
        let mut linker = Linker::new(&whole);
        (0..1000).for_each(|row| whole.link(row, &mut linker));
        let cut = Graph::new(vec![0.0; 4], Level::Portable);
        let without = |row: u32| {
            let mut layers = whole.links(row);
            // The layers above would lead there as well.
            layers.truncate(if row >= 900 { 1 } else { usize::MAX });
            layers.iter_mut().for_each(|links| links.retain(|&other| row >= 900 || other < 900));
            layers
        };
        cut.restore(1000, (0..1000).map(without));
        (0..).zip(&vectors).for_each(|(row, vector)| cut.revive(row, vector));
        (cut, vectors)
    }

    #[test]
    fn an_island_is_led_to() {
        let (graph, vectors) = with_an_island();
        // Such a walk goes wherever a way leads.
        let found = |from: usize| {
            let hits = graph.near(&vectors[from], 1000);
            hits.iter().filter(|hit| hit.row() >= 900).count()
        };
        assert_eq!(found(950), 0, "it is an island");
        let all: Vec<u32> = (0..1000).collect();
        assert!(graph.adopt(&all) > 0);
        assert_eq!((found(950), found(10), graph.near(&vectors[10], 1000).len()), (100, 100, 1000));
        assert_eq!(graph.adopt(&all), 0);
    }
}
