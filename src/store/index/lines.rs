//! Cache-line-aligned rows of numbers, padded with zeros so that kernels need no tails.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

/// Bytes of one cache line, which is also one AVX-512 register.
pub const LINE: usize = 64;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// Rows of equal length, each beginning on a cache line.
#[derive(Clone, Default)]
pub struct Rows<T> {
    lines: Vec<Line>,
    /// Lines of one row.
    stride: usize,
    of: std::marker::PhantomData<T>,
}

impl<T: Pod> Rows<T> {
    /// No rows yet, of `dim` numbers each.
    pub fn new(dim: usize) -> Self {
        Self {
            lines: Vec::new(),
            stride: (dim * size_of::<T>()).div_ceil(LINE),
            of: std::marker::PhantomData,
        }
    }

    /// One row.
    pub fn of(values: &[T]) -> Self {
        let mut rows = Self::new(values.len());
        rows.push(values);
        rows
    }

    /// Numbers of one row with its padding.
    pub fn stride(&self) -> usize {
        self.stride * LINE / size_of::<T>()
    }

    /// Adds a row at the end.
    pub fn push(&mut self, values: &[T]) {
        let row = self.lines.len() / self.stride.max(1);
        self.lines.resize(self.lines.len() + self.stride, Line([0; LINE]));
        self.set(row, values);
    }

    /// Adds `count` rows of zeros at the end.
    pub fn grow(&mut self, count: usize) {
        self.lines.resize(self.lines.len() + count * self.stride, Line([0; LINE]));
    }

    /// Overwrites a row.
    pub fn set(&mut self, row: usize, values: &[T]) {
        let lines = &mut self.lines[row * self.stride..(row + 1) * self.stride];
        bytemuck::cast_slice_mut::<Line, T>(lines)[..values.len()].copy_from_slice(values);
    }

    /// A row with its padding.
    pub fn row(&self, row: usize) -> &[T] {
        bytemuck::cast_slice(&self.lines[row * self.stride..(row + 1) * self.stride])
    }

    /// A row with its padding, to be overwritten; the padding stays zero.
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.lines[row * self.stride..(row + 1) * self.stride])
    }

    /// All rows with their padding.
    pub fn all(&self) -> &[T] {
        bytemuck::cast_slice(&self.lines)
    }

    /// Some rows with their padding.
    pub fn range(&self, rows: Range<usize>) -> &[T] {
        bytemuck::cast_slice(&self.lines[rows.start * self.stride..rows.end * self.stride])
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.lines.capacity() * LINE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_and_aligned() {
        let mut rows = Rows::<f32>::new(20);
        for i in 0..5u8 {
            rows.push(&[f32::from(i); 20]);
        }
        rows.set(3, &[9.0; 20]);
        assert_eq!(rows.stride(), 32);
        assert_eq!(rows.row(3)[..20], [9.0; 20]);
        assert_eq!(rows.row(3)[20..], [0.0; 12]);
        assert_eq!(rows.all().len(), 160);
        assert_eq!(rows.row(4).as_ptr() as usize % LINE, 0);
    }
}
