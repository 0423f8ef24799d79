//! A segment: up to 1024 rows of an index, scanned under one lock.

use super::graph::Probe;
use super::kept::{Kept, Vectors};
use super::kernels::{Level, QueryCodes};
use super::lines::Rows;
use super::linked::Linked;
use super::quantise::{Scale, quantise, score_error};
use super::top::Top;
use super::{Precision, Row};
use crate::store::filter::CompiledFilter;
use crate::store::{ItemId, Neighbour, Query};
use latentd_model::Embedding;
use std::ops::Range;
use std::sync::Arc;

/// Most rows of one segment.
pub const SEGMENT_ROWS: usize = 1024;

/// Rows after which a scan asks whether anybody still waits for it.
pub const BLOCK: usize = 64;

/// Numbers of rows at which the centre is found anew.
const CENTRED_AT: [usize; 3] = [64, 256, SEGMENT_ROWS];

/// What the segments of an index are like.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub dim: usize,
    pub precision: Precision,
    pub vectors: Vectors,
}

/// Rows with their vectors. A row that was deleted stays, empty, until another item takes its place.
pub struct Segment {
    layout: Layout,
    /// Number of its first row.
    first: usize,
    /// Whether there are codes: a segment all of whose rows are in the graph needs none.
    coded: bool,
    /// Whether these are only of the rows that the graph does not lead to.
    partly: bool,
    /// Which rows the graph leads to.
    linked: Vec<bool>,
    kept: Kept,
    codes: Rows<i8>,
    sums: Vec<i32>,
    scales: Vec<Scale>,
    rows: Vec<Option<Row>>,
    /// What the items of the rows take, beside their vectors.
    row_bytes: usize,
    /// What is taken off each vector before it is coded. Encoders' vectors often lie in a narrow cone; around
    /// its middle the codes are finer, so that the bound on a score is tighter and fewer vectors are read.
    centre: Rows<f32>,
    residual: Vec<f32>,
    code: Vec<i8>,
}

/// A query made ready for scanning.
pub struct Prepared<'a> {
    vector: Rows<f32>,
    codes: QueryCodes,
    scale: Scale,
    level: Level,
    filter: Option<CompiledFilter>,
    exclude: &'a [ItemId],
    with_vectors: bool,
    /// Neighbours to keep.
    pub keep: usize,
    graph: Option<GraphScores>,
    stopped: Stopped<'a>,
}

/// Whether nobody waits for a search any more.
pub type Stopped<'a> = &'a (dyn Fn() -> bool + Sync);

/// What scores rows by their codes in the graph, where a segment has none of its own.
pub struct GraphScores {
    pub linked: Arc<Linked>,
    pub probe: Probe,
}

impl GraphScores {
    fn of(&self, row: usize) -> f32 {
        score_of(self.linked.graph.similarity(&self.probe, row as u32))
    }
}

/// The cosine of two vectors of norm 1 that are this similar to the graph: minus half the squared distance.
pub fn score_of(similarity: f32) -> f32 {
    1.0 + similarity
}

impl<'a> Prepared<'a> {
    /// Of this query, for `keep` neighbours.
    pub fn new(
        query: &'a Query,
        keep: usize,
        level: Level,
        filter: Option<CompiledFilter>,
        graph: Option<GraphScores>,
        stopped: Stopped<'a>,
    ) -> Self {
        let values = query.vector.as_slice();
        let mut codes = vec![0; values.len()];
        let scale = quantise(values, &mut codes);
        Self {
            vector: Rows::of(values),
            codes: QueryCodes::new(&codes),
            scale,
            level,
            filter,
            exclude: &query.exclude,
            with_vectors: query.with_vectors,
            keep,
            graph,
            stopped,
        }
    }

    /// Whether nobody waits for what is found any more.
    pub fn stopped(&self) -> bool {
        (self.stopped)()
    }

    /// Whether there is a filter.
    pub fn filters(&self) -> bool {
        self.filter.is_some()
    }

    /// Whether an item counts.
    pub fn counts(&self, row: &Row) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.holds(&row.fields)) && !self.exclude.contains(&row.id)
    }
}

impl Segment {
    /// No rows yet; `first` is to be the number of the first.
    pub fn new(layout: Layout, first: usize) -> Self {
        let dim = layout.dim;
        Self {
            layout,
            first,
            coded: layout.precision == Precision::Quantised,
            partly: false,
            linked: Vec::new(),
            kept: Kept::new(layout.vectors, dim),
            codes: Rows::new(dim),
            sums: Vec::new(),
            scales: Vec::new(),
            rows: Vec::new(),
            row_bytes: 0,
            centre: Rows::of(&vec![0.0; dim]),
            residual: vec![0.0; dim],
            code: vec![0; dim],
        }
    }

    /// With all rows, empty and without codes.
    pub fn emptied(layout: Layout, first: usize) -> Self {
        let mut segment = Self { coded: false, ..Self::new(layout, first) };
        segment.kept = Kept::full(layout.vectors, layout.dim, SEGMENT_ROWS);
        segment.rows.resize_with(SEGMENT_ROWS, || None);
        segment.linked.resize(SEGMENT_ROWS, false);
        segment
    }

    /// Rows, also empty ones.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Puts an item into a row: an existing one, or the next.
    pub fn put(&mut self, at: usize, vector: &[f32], row: Row) {
        let new = at == self.rows.len();
        self.row_bytes += row.bytes();
        if new {
            self.kept.push(vector);
            self.rows.push(Some(row));
            self.linked.push(false);
        } else {
            self.kept.set(at, vector);
            self.row_bytes -= self.rows[at].replace(row).map_or(0, |old| old.bytes());
            self.linked[at] = false;
        }
        if !self.coded && !self.kept.has_any() {
            // For the rows that wait; of the others the graph has codes.
            (self.coded, self.partly) = (true, true);
            self.make_room_for_codes();
        }
        if !self.coded {
            return;
        }
        if new {
            self.codes.push(&[]);
            self.sums.push(0);
            self.scales.push(Scale::default());
        }
        self.encode(at, vector);
        if new && CENTRED_AT.contains(&self.rows.len()) {
            self.find_centre();
        }
        if new && self.rows.len() == SEGMENT_ROWS && self.layout.vectors == Vectors::Int8 {
            self.kept = Kept::Nothing;
        }
    }

    fn make_room_for_codes(&mut self) {
        self.codes = Rows::new(self.layout.dim);
        self.codes.grow(self.rows.len());
        self.sums = vec![0; self.rows.len()];
        self.scales = vec![Scale::default(); self.rows.len()];
    }

    fn encode(&mut self, at: usize, vector: &[f32]) {
        let pairs = vector.iter().zip(self.centre.row(0));
        self.residual
            .iter_mut()
            .zip(pairs)
            .for_each(|(residual, (value, centre))| *residual = value - centre);
        self.scales[at] = quantise(&self.residual, &mut self.code);
        self.sums[at] = self.code.iter().map(|&code| i32::from(code)).sum();
        self.codes.set(at, &self.code);
    }

    /// Moves the centre to the mean of the rows, and codes them again.
    fn find_centre(&mut self) {
        let mut mean = vec![0f32; self.layout.dim];
        let mut vector = mean.clone();
        for at in 0..self.rows.len() {
            self.kept.read(at, &mut vector);
            mean.iter_mut().zip(&vector).for_each(|(sum, value)| *sum += value);
        }
        let count = self.rows.len() as f32;
        mean.iter_mut().for_each(|sum| *sum /= count);
        self.centre.set(0, &mean);
        for at in 0..self.rows.len() {
            self.kept.read(at, &mut vector);
            self.encode(at, &vector);
        }
    }

    /// Empties a row.
    pub fn clear(&mut self, at: usize) {
        self.row_bytes -= self.rows[at].take().map_or(0, |old| old.bytes());
    }

    /// Says whether the graph leads to a row. Once it leads to all rows of a full segment, the codes go.
    pub fn set_linked(&mut self, at: usize, linked: bool) {
        self.linked[at] = linked;
        if self.coded && linked && self.rows.len() == SEGMENT_ROWS && self.linked.iter().all(|&linked| linked)
        {
            (self.coded, self.partly) = (false, false);
            (self.codes, self.sums, self.scales) = (Rows::new(self.layout.dim), Vec::new(), Vec::new());
        }
    }

    /// Codes all rows again, for scans without a graph. `vector` reads the vector of a row that has none here.
    pub fn unlink(&mut self, vector: impl Fn(usize, &mut [f32])) {
        let had = std::mem::replace(&mut self.linked, vec![false; self.rows.len()]);
        if (self.coded && !self.partly) || self.layout.precision == Precision::Float {
            return;
        }
        let mut old = vec![0f32; self.layout.dim];
        let all: Vec<Vec<f32>> = (0..self.rows.len())
            .map(|at| {
                if !self.kept.read(at, &mut old) && (had[at] || !self.decode(at, &mut old)) {
                    vector(self.first + at, &mut old);
                }
                old.clone()
            })
            .collect();
        (self.coded, self.partly) = (true, false);
        self.make_room_for_codes();
        all.iter().enumerate().for_each(|(at, vector)| self.encode(at, vector));
    }

    /// What the codes of a row stand for; tells whether there are any.
    fn decode(&self, at: usize, into: &mut [f32]) -> bool {
        if !self.coded || (self.partly && self.linked[at]) {
            return false;
        }
        let step = self.scales[at].step;
        let pairs = self.centre.row(0).iter().zip(self.codes.row(at));
        into.iter_mut()
            .zip(pairs)
            .for_each(|(value, (centre, &code))| *value = centre + f32::from(code) * step);
        true
    }

    /// The product of a row as it is kept with a padded query.
    pub fn dot(&self, level: Level, query: &[f32], at: usize) -> Option<f32> {
        self.kept.dot(level, query, at)
    }

    /// The vector of a row as it is kept, or what its codes stand for; tells which, or that there is neither.
    pub fn vector(&self, at: usize, into: &mut [f32]) -> Option<Fidelity> {
        if self.kept.read(at, into) {
            return Some(Fidelity::Kept);
        }
        self.decode(at, into).then_some(Fidelity::Decoded)
    }

    /// The item of a row, if there is one.
    pub fn row(&self, at: usize) -> Option<&Row> {
        self.rows.get(at)?.as_ref()
    }

    /// The rows that are items.
    pub fn items(&self) -> impl Iterator<Item = (usize, &Row)> {
        self.rows.iter().enumerate().filter_map(|(at, row)| row.as_ref().map(|row| (at, row)))
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        let each = size_of::<Option<Row>>() + size_of::<i32>() + size_of::<Scale>();
        self.kept.bytes() + self.codes.bytes() + self.row_bytes + self.rows.capacity() * each
    }

    /// Offers every item of these rows that counts and can reach the bar, or of those the graph does not lead to yet;
    /// breaks off when nobody waits any more. `dots` is scratch.
    pub fn scan(
        &self,
        rows: Range<usize>,
        query: &Prepared<'_>,
        top: &mut Top<'_>,
        dots: &mut Vec<i32>,
        what: Rest,
    ) {
        let rows = rows.start.min(self.rows.len())..rows.end.min(self.rows.len());
        let concerned = |at: usize| what == Rest::All || !self.linked[at];
        let graph = |at: usize| query.graph.as_ref().map_or(-1.0, |graph| graph.of(self.first + at));
        if !self.coded {
            for first in rows.clone().step_by(BLOCK).take_while(|_| !query.stopped()) {
                let block = first..rows.end.min(first + BLOCK);
                block.filter(|&at| concerned(at)).for_each(|at| {
                    self.offer(at, query, top, || graph(at));
                });
            }
            return;
        }
        dots.resize(rows.len(), 0);
        let (codes, sums) = (self.codes.range(rows.clone()), &self.sums[rows.clone()]);
        query.level.dots_i8(&query.codes, codes, sums, dots);
        let middle = query.level.dot_f32(query.vector.row(0), self.centre.row(0));
        let scales = self.scales[rows.clone()].chunks(BLOCK);
        let blocks = dots.chunks(BLOCK).zip(scales).zip(rows.step_by(BLOCK));
        for ((dots, scales), first) in blocks.take_while(|_| !query.stopped()) {
            for (at, (&dot, &scale)) in (first..).zip(dots.iter().zip(scales)) {
                if self.partly && self.linked[at] {
                    if concerned(at) {
                        self.offer(at, query, top, || graph(at));
                    }
                    continue;
                }
                // The exact score is at most this, so what cannot reach the bar is left out and nothing is lost.
                let rough = middle + dot as f32 * (query.scale.step * scale.step);
                let most = rough + score_error(query.scale, scale);
                if most >= top.bar() && concerned(at) {
                    self.offer(at, query, top, || rough);
                }
            }
        }
    }

    /// Offers the item of a row if it counts; tells whether it does. `rough` is its score where the vector is not
    /// kept.
    pub fn offer(&self, at: usize, query: &Prepared<'_>, top: &mut Top<'_>, rough: impl Fn() -> f32) -> bool {
        let Some(row) = self.row(at) else { return false };
        // With a filter the vector is read last, because it is the dearest; its test is nanoseconds.
        if query.filter.is_some() && !query.counts(row) {
            return false;
        }
        let score =
            self.kept.dot(query.level, query.vector.row(0), at).unwrap_or_else(rough).clamp(-1.0, 1.0);
        if score >= top.bar() && (query.filter.is_some() || query.counts(row)) {
            let make = || {
                let vector = || {
                    let mut values = vec![0f32; self.layout.dim];
                    self.vector(at, &mut values)?;
                    let same = Embedding::from_normalised(values.clone());
                    same.or_else(|_| Embedding::from_unnormalised(values)).ok()
                };
                let vector = if query.with_vectors { vector() } else { None };
                Neighbour { id: row.id.clone(), score, metadata: row.metadata.clone(), vector }
            };
            top.offer(score, &row.id, make);
        }
        query.filter.is_some() || query.counts(row)
    }
}

/// How near a vector is to what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fidelity {
    /// As far as it is kept.
    Kept,
    /// What its codes stand for.
    Decoded,
}

/// Which items a scan offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// All.
    All,
    /// Those that the graph does not lead to yet.
    Waiting,
}
