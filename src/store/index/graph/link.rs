//! Linking: how a node gets its neighbours, and becomes theirs.

use super::nodes::{M, M0, NONE, Nodes};
use super::probe::Probe;
use super::walk::{Hit, Walker};
use super::{EF_BUILD, Entry, Graph};

/// What linking needs of memory, used again for the next node.
pub struct Linker {
    pub walker: Walker,
    probe: Probe,
    other: Probe,
    near: Vec<Hit>,
    chosen: Vec<Hit>,
    left: Vec<Hit>,
}

impl Linker {
    /// For vectors of this graph.
    pub fn new(graph: &Graph) -> Self {
        let probe = || Probe::new(graph.dim(), graph.level());
        let (near, chosen, left) = (Vec::new(), Vec::new(), Vec::new());
        Self { walker: Walker::default(), probe: probe(), other: probe(), near, chosen, left }
    }

    /// Chooses at most `most` of `near` (the nearest first) as neighbours of what it is near to: those that are
    /// nearer to it than to any chosen before, so that links go in every direction, then the nearest of the rest
    /// (algorithm 4 with keepPrunedConnections).
    pub fn choose(&mut self, nodes: &Nodes, most: usize) {
        self.chosen.clear();
        self.left.clear();
        for &hit in &self.near {
            if self.chosen.len() == most {
                break;
            }
            nodes.aim(&mut self.other, hit.row());
            let hidden =
                self.chosen.iter().any(|c| nodes.similarity(&self.other, c.row()) >= hit.similarity());
            if hidden { self.left.push(hit) } else { self.chosen.push(hit) }
        }
        let room = most - self.chosen.len();
        self.chosen.extend(self.left.iter().take(room));
    }

    /// Takes rows as candidates for neighbours of `row`, the nearest first. Equally near ones come in an order
    /// that differs from row to row: many equal vectors would else all link to the same few.
    pub fn consider(&mut self, nodes: &Nodes, row: u32, rows: impl IntoIterator<Item = u32>) {
        nodes.aim(&mut self.probe, row);
        self.near.clear();
        let probe = &self.probe;
        self.near.extend(
            rows.into_iter()
                .filter(|&other| other != row)
                .map(|other| Hit::new(nodes.similarity(probe, other), other)),
        );
        let order = |hit: &Hit| mix(u64::from(hit.row()) << 32 | u64::from(row));
        self.near.sort_unstable_by(|a, b| {
            b.similarity().total_cmp(&a.similarity()).then_with(|| order(a).cmp(&order(b)))
        });
        self.near.dedup();
    }

    /// The rows that were chosen.
    pub fn chosen(&self) -> impl Iterator<Item = u32> {
        self.chosen.iter().map(|hit| hit.row())
    }
}

/// Most links of a node in a layer.
pub fn most(layer: usize) -> usize {
    if layer == 0 { M0 } else { M }
}

/// Scatters a number (splitmix64).
pub fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Graph {
    /// Links a node that was put in (algorithm 1). Nodes may be linked by several threads at once.
    pub fn link(&self, row: u32, linker: &mut Linker) {
        let nodes = self.nodes.read();
        let top = nodes.top(row);
        let entry = self.entry.get();
        if entry.row == NONE && self.entry.replace(entry, Entry { row, top }) {
            return;
        }
        let entry = self.entry.get();
        let mut probe = Probe::new(self.dim(), self.level());
        nodes.aim(&mut probe, row);
        let mut starts = entry.descend(&nodes, &probe, top, &mut linker.walker);
        for layer in (0..=top.min(entry.top)).rev() {
            linker.walker.walk(&nodes, &probe, &starts, layer, EF_BUILD);
            starts = linker.walker.found.iter().map(|hit| hit.row()).collect();
            linker.consider(&nodes, row, starts.iter().copied());
            linker.choose(&nodes, M);
            let chosen: Vec<u32> = linker.chosen().collect();
            {
                // Others may have linked to it since: what they found is kept where there is room.
                let _lock = self.lock(row);
                let mut links = chosen.clone();
                nodes.neighbours(row, layer, |other| {
                    if links.len() < most(layer) && !links.contains(&other) {
                        links.push(other);
                    }
                });
                nodes.set(row, layer, links);
            }
            for other in chosen {
                self.link_back(&nodes, other, row, layer, linker);
            }
        }
        self.entry.raise(Entry { row, top });
    }

    /// Adds `row` to the neighbours of `other`, or where there is no room chooses among them anew.
    fn link_back(&self, nodes: &Nodes, other: u32, row: u32, layer: usize, linker: &mut Linker) {
        let _lock = self.lock(other);
        let mut rows = Vec::with_capacity(M0 + 1);
        nodes.neighbours(other, layer, |neighbour| rows.push(neighbour));
        if rows.contains(&row) || nodes.add(other, layer, row) {
            return;
        }
        rows.push(row);
        linker.consider(nodes, other, rows);
        linker.choose(nodes, most(layer));
        nodes.set(other, layer, linker.chosen());
    }
}
