//! Repair: leading ways around nodes that are to go, and to nodes that nobody leads to.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use rayon::prelude::*;

use super::link::{Linker, most};
use super::nodes::{NONE, Nodes};
use super::{Entry, Graph};

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

    /// Leads to each of `rows` that no node of the lowest layer leads to, by way of its neighbours. Runs on the
    /// current rayon pool, beside walks, but not beside linking.
    pub fn adopt(&self, rows: &[u32]) -> usize {
        let nodes = self.nodes.read();
        let led: Vec<AtomicU32> = (0..nodes.rows()).map(|_| AtomicU32::new(0)).collect();
        let count = |&row: &u32| {
            nodes.neighbours(row, 0, |other| {
                led[other as usize].fetch_add(1, Relaxed);
            });
        };
        rows.par_iter().for_each(count);
        let entry = self.entry.get().row;
        let lone = rows.iter().copied().filter(|&row| row != entry && led[row as usize].load(Relaxed) == 0);
        let mut adopted = 0;
        for row in lone {
            let mut parents = Vec::new();
            nodes.neighbours(row, 0, |other| parents.push(other));
            adopted += usize::from(parents.into_iter().any(|parent| self.take_in(&nodes, parent, row, &led)));
        }
        adopted
    }

    /// Links `parent` to `row`, in place of its last neighbour that others lead to where there is no room.
    fn take_in(&self, nodes: &Nodes, parent: u32, row: u32, led: &[AtomicU32]) -> bool {
        let _lock = self.lock(parent);
        if nodes.add(parent, 0, row) {
            return true;
        }
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
