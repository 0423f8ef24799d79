//! A segment: up to 1024 rows of an index, scanned under one lock.

use super::kernels::{Level, QueryCodes};
use super::lines::Rows;
use super::quantise::{Scale, quantise, score_error};
use super::top::Top;
use super::{Precision, Row};
use crate::store::filter::CompiledFilter;
use crate::store::{ItemId, Neighbour, Query};
use latentd_model::Embedding;

/// Most rows of one segment.
pub const SEGMENT_ROWS: usize = 1024;

/// Numbers of rows at which the centre is found anew.
const CENTRED_AT: [usize; 3] = [64, 256, SEGMENT_ROWS];

/// Rows with their vectors. A row that was deleted stays, empty, until another item takes its place.
pub struct Segment {
    precision: Precision,
    /// Whether there are codes: a segment all of whose rows are in the graph needs none.
    coded: bool,
    /// Which rows the graph leads to.
    linked: Vec<bool>,
    vectors: Rows<f32>,
    codes: Rows<i8>,
    sums: Vec<i32>,
    scales: Vec<Scale>,
    rows: Vec<Option<Row>>,
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
}

impl<'a> Prepared<'a> {
    /// Of this query.
    pub fn new(query: &'a Query, level: Level, filter: Option<CompiledFilter>) -> Self {
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
        }
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
    /// No rows yet.
    pub fn new(dim: usize, precision: Precision) -> Self {
        Self {
            precision,
            coded: precision == Precision::Quantised,
            linked: Vec::new(),
            vectors: Rows::new(dim),
            codes: Rows::new(dim),
            sums: Vec::new(),
            scales: Vec::new(),
            rows: Vec::new(),
            centre: Rows::of(&vec![0.0; dim]),
            residual: vec![0.0; dim],
            code: vec![0; dim],
        }
    }

    /// With all rows, empty and without codes.
    pub fn emptied(dim: usize, precision: Precision) -> Self {
        let mut segment = Self { coded: false, ..Self::new(dim, precision) };
        segment.vectors.grow(SEGMENT_ROWS);
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
        if new {
            self.vectors.push(vector);
            self.rows.push(Some(row));
            self.linked.push(false);
        } else {
            self.vectors.set(at, vector);
            self.rows[at] = Some(row);
            self.linked[at] = false;
        }
        if !self.coded {
            return;
        }
        if new {
            self.codes.push(&[]);
            self.sums.push(0);
            self.scales.push(Scale { step: 0.0, error: 0.0, norm: 0.0 });
        }
        self.encode(at);
        if new && CENTRED_AT.contains(&self.rows.len()) {
            self.find_centre();
        }
    }

    fn encode(&mut self, at: usize) {
        let pairs = self.vectors.row(at).iter().zip(self.centre.row(0));
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
        let mut mean = vec![0f32; self.residual.len()];
        for at in 0..self.rows.len() {
            mean.iter_mut().zip(self.vectors.row(at)).for_each(|(sum, value)| *sum += value);
        }
        let count = self.rows.len() as f32;
        mean.iter_mut().for_each(|sum| *sum /= count);
        self.centre.set(0, &mean);
        (0..self.rows.len()).for_each(|at| self.encode(at));
    }

    /// Empties a row.
    pub fn clear(&mut self, at: usize) {
        self.rows[at] = None;
    }

    /// Says whether the graph leads to a row. Once it leads to all rows of a full segment, the codes go.
    pub fn set_linked(&mut self, at: usize, linked: bool) {
        self.linked[at] = linked;
        if self.coded && linked && self.rows.len() == SEGMENT_ROWS && self.linked.iter().all(|&linked| linked)
        {
            self.coded = false;
            let dim = self.residual.len();
            (self.codes, self.sums, self.scales) = (Rows::new(dim), Vec::new(), Vec::new());
        }
    }

    /// Codes all rows again, for scans without a graph.
    pub fn unlink(&mut self) {
        self.linked.fill(false);
        if self.coded || self.precision == Precision::Float {
            return;
        }
        self.coded = true;
        self.codes.grow(self.rows.len());
        self.sums = vec![0; self.rows.len()];
        self.scales = vec![Scale { step: 0.0, error: 0.0, norm: 0.0 }; self.rows.len()];
        (0..self.rows.len()).for_each(|at| self.encode(at));
    }

    /// The item of a row, if there is one.
    pub fn row(&self, at: usize) -> Option<&Row> {
        self.rows.get(at)?.as_ref()
    }

    /// The vector of a row with its padding.
    pub fn padded(&self, at: usize) -> &[f32] {
        self.vectors.row(at)
    }

    /// The vector of a row.
    pub fn vector(&self, at: usize) -> &[f32] {
        &self.vectors.row(at)[..self.residual.len()]
    }

    /// The items with their vectors.
    pub fn items(&self) -> impl Iterator<Item = (&[f32], &Row)> {
        let full = self.rows.iter().enumerate();
        full.filter_map(move |(at, row)| row.as_ref().map(|row| (self.vector(at), row)))
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        let rows: usize = self.rows.iter().flatten().map(Row::bytes).sum();
        let each = size_of::<Option<Row>>() + size_of::<i32>() + size_of::<Scale>();
        self.vectors.bytes() + self.codes.bytes() + rows + self.rows.capacity() * each
    }

    /// Offers every item that counts and can reach the bar, or of those the graph does not lead to yet. `dots`
    /// is scratch.
    pub fn scan(&self, query: &Prepared<'_>, top: &mut Top<'_>, dots: &mut Vec<i32>, what: Rest) {
        let concerned = |at: usize| what == Rest::All || !self.linked[at];
        if !self.coded {
            let rows = (0..self.rows.len()).filter(|&at| concerned(at));
            rows.for_each(|at| {
                self.offer(at, query, top);
            });
            return;
        }
        dots.resize(self.rows.len(), 0);
        query.level.dots_i8(&query.codes, self.codes.all(), &self.sums, dots);
        let middle = query.level.dot_f32(query.vector.row(0), self.centre.row(0));
        for (at, (&dot, &scale)) in dots.iter().zip(&self.scales).enumerate() {
            // The exact score is at most this, so what cannot reach the bar is left out and nothing is lost.
            let rough = middle + dot as f32 * (query.scale.step * scale.step);
            let most = rough + score_error(query.scale, scale);
            if most >= top.bar() && concerned(at) {
                self.offer(at, query, top);
            }
        }
    }

    /// Offers the item of a row if it counts; tells whether it does.
    pub fn offer(&self, at: usize, query: &Prepared<'_>, top: &mut Top<'_>) -> bool {
        let Some(row) = self.row(at) else { return false };
        // With a filter the vector is read last, because it is the dearest; its test is nanoseconds.
        if query.filter.is_some() && !query.counts(row) {
            return false;
        }
        let score = query.level.dot_f32(query.vector.row(0), self.vectors.row(at)).clamp(-1.0, 1.0);
        if score >= top.bar() && (query.filter.is_some() || query.counts(row)) {
            let make = || {
                let vector = query.with_vectors.then(|| self.vector(at).to_vec());
                let vector = vector.and_then(|values| Embedding::from_normalised(values).ok());
                Neighbour { id: row.id.clone(), score, metadata: row.metadata.clone(), vector }
            };
            top.offer(score, &row.id, make);
        }
        query.filter.is_some() || query.counts(row)
    }
}

/// Which items a scan offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// All.
    All,
    /// Those that the graph does not lead to yet.
    Waiting,
}
