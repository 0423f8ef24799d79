//! Places: which item is in which row, and how far each row is on its way into the graph.

use std::collections::{HashMap, VecDeque};

use crate::store::ItemId;

/// How a row stands to the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// No item of it is to be linked.
    #[default]
    Out,
    /// Its item waits to be linked.
    Waiting,
    /// It is a node, or is being made one.
    Node,
}

/// Where the items are, and which rows are empty. Held for the whole of a change.
#[derive(Default)]
pub struct Places {
    of: HashMap<ItemId, usize>,
    free: Vec<usize>,
    rows: usize,
    /// Whether there is a graph; what follows is empty otherwise.
    pub linking: bool,
    states: Vec<State>,
    waiting: VecDeque<usize>,
    dead: Vec<usize>,
    /// Rows of nodes whose items are still to come, by the write that made them.
    thawing: HashMap<u64, usize>,
}

impl Places {
    /// Items.
    pub fn items(&self) -> usize {
        self.of.len()
    }

    /// Rows, also empty ones.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Rows that can be taken again.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Rows that are nodes of the graph and no items.
    pub fn dead(&self) -> usize {
        self.dead.len()
    }

    /// Rows that wait to be linked, at most.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The row of an item.
    pub fn find(&self, id: &ItemId) -> Option<usize> {
        self.of.get(id).copied()
    }

    /// Whether a row is a node, so that its vector must stay.
    pub fn is_node(&self, row: usize) -> bool {
        self.states.get(row) == Some(&State::Node)
    }

    /// A row for an item: an empty one, or a new one at the end.
    pub fn take(&mut self, id: &ItemId) -> usize {
        let row = self.free.pop().unwrap_or_else(|| {
            self.rows += 1;
            self.rows - 1
        });
        self.of.insert(id.clone(), row);
        if self.linking {
            self.wait(row);
        }
        row
    }

    /// Forgets an item; gives its row.
    pub fn forget(&mut self, id: &ItemId) -> Option<usize> {
        self.of.remove(id)
    }

    /// Lets go of a row without an item; tells whether it was waiting.
    pub fn release(&mut self, row: usize) -> bool {
        let state = self.states.get(row).copied().unwrap_or_default();
        if state == State::Node {
            self.dead.push(row);
        } else {
            self.free.push(row);
        }
        if state == State::Waiting {
            self.states[row] = State::Out;
        }
        state == State::Waiting
    }

    fn wait(&mut self, row: usize) {
        if self.states.len() <= row {
            self.states.resize(row + 1, State::Out);
        }
        self.states[row] = State::Waiting;
        self.waiting.push_back(row);
    }

    /// Begins with a graph: every item waits, in an order that scatters what came together.
    pub fn begin(&mut self) {
        self.linking = true;
        let mut rows: Vec<usize> = self.of.values().copied().collect();
        rows.sort_unstable_by_key(|&row| (super::graph::scatter(row), row));
        rows.into_iter().for_each(|row| self.wait(row));
    }

    /// Ends with a graph.
    pub fn end(&mut self) {
        self.free.append(&mut self.dead);
        (self.linking, self.states, self.waiting) = (false, Vec::new(), VecDeque::new());
    }

    /// At most `most` rows that waited; they are nodes now.
    pub fn claim(&mut self, most: usize) -> Vec<usize> {
        let mut rows = Vec::with_capacity(most.min(self.waiting.len()));
        while rows.len() < most
            && let Some(row) = self.waiting.pop_front()
        {
            // It may have been emptied meanwhile, or emptied, taken again and claimed already.
            if self.states[row] == State::Waiting {
                self.states[row] = State::Node;
                rows.push(row);
            }
        }
        rows
    }

    /// The nodes that are no items, and those that stay.
    pub fn dead_and_live(&self) -> (Vec<usize>, Vec<usize>) {
        let mut dead = vec![false; self.states.len()];
        self.dead.iter().for_each(|&row| dead[row] = true);
        let live = (0..self.states.len()).filter(|&row| self.states[row] == State::Node && !dead[row]);
        (self.dead.clone(), live.collect())
    }

    /// Makes rows that the graph forgot free.
    pub fn bury(&mut self, rows: &[usize]) {
        let gone: std::collections::HashSet<usize> = rows.iter().copied().collect();
        self.dead.retain(|row| !gone.contains(row));
        rows.iter().for_each(|&row| self.states[row] = State::Out);
        self.free.extend(rows);
    }

    /// Takes over rows, some of them nodes, whose items are to come.
    pub fn thaw(&mut self, rows: usize, nodes: impl Iterator<Item = bool>, by_write: HashMap<u64, usize>) {
        (self.linking, self.rows, self.thawing) = (true, rows, by_write);
        self.states = nodes.map(|node| if node { State::Node } else { State::Out }).collect();
        self.states.resize(rows, State::Out);
        self.free = (0..rows).rev().filter(|&row| self.states[row] == State::Out).collect();
    }

    /// The node of an item that was written then, if it is still to come.
    pub fn revive(&mut self, id: &ItemId, write: u64) -> Option<usize> {
        let row = self.thawing.remove(&write)?;
        self.of.insert(id.clone(), row);
        Some(row)
    }

    /// Nodes whose items did not come are dead; tells how many.
    pub fn end_thaw(&mut self) -> usize {
        self.thawing = HashMap::new();
        let alive: std::collections::HashSet<usize> = self.of.values().copied().collect();
        let nodes = (0..self.states.len()).filter(|&row| self.states[row] == State::Node);
        self.dead = nodes.filter(|row| !alive.contains(row)).collect();
        self.dead.len()
    }

    /// Puts items into rows one after the other, in a new order.
    pub fn repack(&mut self, ids: impl Iterator<Item = ItemId>) {
        self.of = ids.enumerate().map(|(row, id)| (id, row)).collect();
        (self.rows, self.free) = (self.of.len(), Vec::new());
    }
}
