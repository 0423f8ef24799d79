//! Pixels of many pictures: in memory up to a budget, above it in a nameless file mapped into memory.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use latentd_model::Pixels;
use memmap2::Mmap;

use super::error::DataError;

/// Pixels are kept in pieces of at least this size, so that growing never copies them.
const SEGMENT_BYTES: usize = 64 << 20;

/// Where one picture lies.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) segment: usize,
    pub(super) offset: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

/// A piece of the pixels.
#[derive(Debug)]
pub(super) enum Segment {
    Memory(Vec<u8>),
    Mapped(Mmap),
}

impl Segment {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

/// A cache being filled.
pub(super) struct Store {
    pub(super) entries: Vec<Entry>,
    segments: Vec<Vec<u8>>,
    memory_bytes: u64,
    /// Bytes of pixels so far.
    pub(super) total_bytes: u64,
    budget: u64,
    spill_dir: PathBuf,
    spill: Option<BufWriter<File>>,
    spilled: u64,
}

/// Stands for the spill file until the number of segments in memory is known.
const SPILLED: usize = usize::MAX;

impl Store {
    /// Keeps up to `budget` bytes in memory and the rest in a file in `spill_dir`.
    pub(super) fn new(budget: u64, spill_dir: PathBuf) -> Self {
        Self {
            entries: Vec::new(),
            segments: Vec::new(),
            memory_bytes: 0,
            total_bytes: 0,
            budget,
            spill_dir,
            spill: None,
            spilled: 0,
        }
    }

    /// Appends a picture.
    pub(super) fn push(&mut self, path: PathBuf, pixels: Pixels) -> Result<(), DataError> {
        let (height, width) = (pixels.height() as usize, pixels.width() as usize);
        let bytes = pixels.as_bytes();
        self.total_bytes += bytes.len() as u64;
        let (segment, offset) =
            if self.spill.is_none() && self.memory_bytes + bytes.len() as u64 <= self.budget {
                self.memory_bytes += bytes.len() as u64;
                self.push_memory(bytes)
            } else {
                (SPILLED, self.push_spill(bytes)?)
            };
        self.entries.push(Entry { path, segment, offset, height, width });
        Ok(())
    }

    fn push_memory(&mut self, bytes: &[u8]) -> (usize, usize) {
        match self.segments.last_mut() {
            Some(last) if last.capacity() - last.len() >= bytes.len() => {
                let offset = last.len();
                last.extend_from_slice(bytes);
                (self.segments.len() - 1, offset)
            }
            _ => {
                let mut segment = Vec::with_capacity(SEGMENT_BYTES.max(bytes.len()));
                segment.extend_from_slice(bytes);
                self.segments.push(segment);
                (self.segments.len() - 1, 0)
            }
        }
    }

    fn push_spill(&mut self, bytes: &[u8]) -> Result<usize, DataError> {
        let failed = |dir: &Path, e| {
            DataError::io(
                format!(
                    "writing decoded pictures to a temporary file in {} (set another folder or a larger memory budget)",
                    dir.display()
                ),
                e,
            )
        };
        if self.spill.is_none() {
            let file = tempfile::tempfile_in(&self.spill_dir).map_err(|e| failed(&self.spill_dir, e))?;
            self.spill = Some(BufWriter::with_capacity(1 << 20, file));
        }
        let offset = self.spilled as usize;
        if let Some(spill) = &mut self.spill {
            spill.write_all(bytes).map_err(|e| failed(&self.spill_dir, e))?;
        }
        self.spilled += bytes.len() as u64;
        Ok(offset)
    }

    /// Entries, segments and the number of bytes in the spill file.
    pub(super) fn finish(self) -> Result<(Vec<Entry>, Vec<Segment>, u64), DataError> {
        let mut segments: Vec<Segment> = self.segments.into_iter().map(Segment::Memory).collect();
        let mapped = segments.len();
        if let Some(writer) = self.spill {
            let file = writer.into_inner().map_err(|e| {
                DataError::io(format!("writing to {}", self.spill_dir.display()), e.into_error())
            })?;
            // SAFETY: the file was created without a name by this process and its handle is dropped here, so nobody
            // can change or shorten it while it is mapped.
            let map = unsafe { Mmap::map(&file) }.map_err(|e| {
                DataError::io(format!("mapping a temporary file in {}", self.spill_dir.display()), e)
            })?;
            segments.push(Segment::Mapped(map));
        }
        let mut entries = self.entries;
        for entry in &mut entries {
            if entry.segment == SPILLED {
                entry.segment = mapped;
            }
        }
        Ok((entries, segments, self.spilled))
    }
}
