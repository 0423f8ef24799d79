//! The tables by which sweeps over flat vectors know whose array a value is in.

use std::rc::Rc;

use super::device::{Device, Result};
use super::layout::DeviceLayout;
use super::memory::{Buffer, Pool};
use crate::nn::layout::Role;

/// Values of a chunk at most: one block's work.
const CHUNK: usize = 1 << 14;

/// Chunks and arrays of a flat vector, as the kernels read them (four u32 a row).
pub struct Tables<D: Device> {
    /// All chunks.
    pub chunks: Buffer<D>,
    /// The arrays.
    pub arrays: Buffer<D>,
    /// (chunks, arrays).
    pub counts: (usize, usize),
    /// The chunks of convolutions' weights.
    pub filters: Buffer<D>,
    /// How many these are.
    pub filter_chunks: usize,
}

impl<D: Device> Tables<D> {
    /// The tables of a layout.
    pub fn new(pool: &Rc<Pool<D>>, layout: &DeviceLayout) -> Result<Self> {
        let (mut chunks, mut arrays, mut filters) = (Vec::new(), Vec::new(), Vec::new());
        for (number, segment) in layout.segments().iter().enumerate() {
            let first = chunks.len();
            for start in segment.range.clone().step_by(CHUNK) {
                let row = [start, CHUNK.min(segment.range.end - start), number, 0].map(|v| v as u32);
                chunks.push(row);
                if segment.is_filter() {
                    filters.push(row);
                }
            }
            let adapted = u32::from(segment.role == Role::Weight);
            arrays.push([first as u32, (chunks.len() - first) as u32, adapted, 0]);
        }
        let copy = |rows: &[[u32; 4]]| pool.copy_of(bytemuck::cast_slice(rows));
        Ok(Self {
            chunks: copy(&chunks)?,
            arrays: copy(&arrays)?,
            counts: (chunks.len(), arrays.len()),
            filters: copy(&filters)?,
            filter_chunks: filters.len(),
        })
    }
}
