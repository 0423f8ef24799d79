//! Memory in cache lines, kept by each thread from call to call.

/// One cache line of bfloat16.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u16; 32]);

/// bfloat16 values of a line.
pub const LINE: usize = 32;

/// Zeroed at first, then whatever the last use left: always finite if the maps are.
#[derive(Default)]
pub struct Lines(Vec<Line>);

impl Lines {
    /// Room for so many bfloat16 values.
    pub fn room(&mut self, values: usize) -> &mut [u16] {
        let lines = values.div_ceil(LINE);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0; LINE]));
        }
        // SAFETY: a line is its array; the slice covers lines that exist.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), lines * LINE) }
    }

    /// Where the value `at` lies.
    pub fn at(&self, at: usize) -> *const u16 {
        self.0.as_ptr().cast::<u16>().wrapping_add(at)
    }
}
