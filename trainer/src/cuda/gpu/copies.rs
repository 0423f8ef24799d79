//! What goes to and fro beside the computation: views in, reports out.

use std::collections::VecDeque;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result, sys};
use rayon::prelude::*;

use super::super::device::{Address, CudaError, Result};
use super::failed;
use crate::method::byol::StepReport;

/// Reports under way; a step that would be one more waits for the oldest. It bounds how far the host
/// runs ahead of the GPU.
const REPORTS: usize = 4;
/// Values that a thread copies at a time.
const CHUNK: usize = 1 << 16;

/// Memory of the host from which the GPU copies by itself.
struct Pinned {
    at: *mut f32,
    len: usize,
}

impl Pinned {
    fn new(context: &Arc<CudaContext>, len: usize) -> Result<Self> {
        context.bind_to_thread().map_err(failed("choosing the GPU"))?;
        // SAFETY: a plain allocation, given back in `drop`, and filled at once, so that all is set.
        unsafe {
            let at = result::malloc_host(4 * len, 0).map_err(failed("pinned memory"))?.cast::<f32>();
            std::ptr::write_bytes(at, 0, len);
            Ok(Self { at, len })
        }
    }

    fn values(&mut self) -> &mut [f32] {
        // SAFETY: so many values are there; the callers wait for copies before they touch them.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: it was allocated so; the owners wait for copies before they drop it.
        unsafe { result::free_host(self.at.cast()) }.ok();
    }
}

fn event(context: &Arc<CudaContext>) -> Result<CudaEvent> {
    // Who waits for it sleeps: the loader's threads need the core.
    let flags = Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC);
    context.new_event(flags).map_err(failed("making an event"))
}

/// One pair of views on its way.
struct Slot {
    host: Pinned,
    device: Address,
    /// The copy to the GPU is done: the host may write again.
    copied: CudaEvent,
    /// The step has read the views: the next copy may overwrite them.
    read: CudaEvent,
}

/// Views on their way to the GPU, on a stream of their own: two pairs in turn.
pub struct Uploads {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    slots: [Option<Slot>; 2],
    turn: usize,
}

impl Uploads {
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let stream = context.new_stream().map_err(failed("making a stream"))?;
        Ok(Self { context: context.clone(), stream, slots: [None, None], turn: 0 })
    }

    /// Copies the views; what `compute` runs from now on sees them.
    pub fn send(&mut self, compute: &CudaStream, view1: &[f32], view2: &[f32]) -> Result<Address> {
        self.turn = 1 - self.turn;
        let len = view1.len() + view2.len();
        if self.slots[self.turn].as_ref().is_none_or(|slot| slot.host.len < len) {
            self.release(self.turn);
            self.slots[self.turn] = Some(self.slot(len)?);
        }
        let Some(slot) = &mut self.slots[self.turn] else {
            return Err(CudaError("an upload's memory was lost".into()));
        };
        let copying = failed("copying views to the GPU");
        slot.copied.synchronize().map_err(&copying)?;
        let (to1, to2) = slot.host.values()[..len].split_at_mut(view1.len());
        let copy = |(to, from): (&mut [f32], &[f32])| to.copy_from_slice(from);
        to1.par_chunks_mut(CHUNK).zip(view1.par_chunks(CHUNK)).for_each(copy);
        to2.par_chunks_mut(CHUNK).zip(view2.par_chunks(CHUNK)).for_each(copy);
        self.stream.wait(&slot.read).map_err(&copying)?;
        // SAFETY: both sides hold `len` values; the host's stay as they are until `copied`.
        unsafe {
            let from = std::slice::from_raw_parts(slot.host.at, len);
            result::memcpy_htod_async(slot.device, from, self.stream.cu_stream()).map_err(&copying)?;
        }
        slot.copied.record(&self.stream).map_err(&copying)?;
        compute.wait(&slot.copied).map_err(&copying)?;
        Ok(slot.device)
    }

    /// What `compute` runs so far has read the views sent last.
    pub fn read(&mut self, compute: &CudaStream) -> Result<()> {
        match &self.slots[self.turn] {
            Some(slot) => slot.read.record(compute).map_err(failed("recording an event")),
            None => Ok(()),
        }
    }

    fn slot(&self, len: usize) -> Result<Slot> {
        let host = Pinned::new(&self.context, len)?;
        let (copied, read) = (event(&self.context)?, event(&self.context)?);
        // SAFETY: a plain allocation, given back in `release`.
        let device = unsafe { result::malloc_sync(4 * len) }.map_err(failed("memory for views"))?;
        Ok(Slot { host, device, copied, read })
    }

    fn release(&mut self, number: usize) {
        if let Some(slot) = self.slots[number].take() {
            slot.copied.synchronize().ok();
            slot.read.synchronize().ok();
            // SAFETY: nothing copies to it or reads it any more.
            unsafe { result::free_sync(slot.device) }.ok();
        }
    }
}

impl Drop for Uploads {
    fn drop(&mut self) {
        self.release(0);
        self.release(1);
    }
}

/// Reports on their way to the host.
pub struct Reports {
    free: Vec<(Pinned, CudaEvent)>,
    under_way: VecDeque<(Pinned, CudaEvent)>,
    arrived: Vec<StepReport>,
}

impl Reports {
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let slot = |_| Ok((Pinned::new(context, 2)?, event(context)?));
        let free = (0..REPORTS).map(slot).collect::<Result<_>>()?;
        Ok(Self { free, under_way: VecDeque::new(), arrived: Vec::new() })
    }

    /// Copies a report once `compute` has run all before.
    ///
    /// # Safety
    /// Two f32 are there.
    pub unsafe fn send(&mut self, compute: &CudaStream, at: Address) -> Result<()> {
        if self.free.is_empty() {
            self.arrive()?;
        }
        let Some((mut host, event)) = self.free.pop() else {
            return Err(CudaError("a report's memory was lost".into()));
        };
        let copying = failed("copying a report");
        // SAFETY: the caller's promise; the host's memory stays until `event`.
        unsafe { result::memcpy_dtoh_async(host.values(), at, compute.cu_stream()) }.map_err(&copying)?;
        event.record(compute).map_err(&copying)?;
        self.under_way.push_back((host, event));
        Ok(())
    }

    /// Waits for the oldest.
    fn arrive(&mut self) -> Result<()> {
        let Some((mut host, event)) = self.under_way.pop_front() else { return Ok(()) };
        event.synchronize().map_err(failed("waiting for a step"))?;
        let values = host.values();
        self.arrived
            .push(StepReport { loss: f64::from(values[0]), representation_std: f64::from(values[1]) });
        self.free.push((host, event));
        Ok(())
    }

    /// Those that arrived; all, if `all`, which waits.
    pub fn take(&mut self, all: bool) -> Result<Vec<StepReport>> {
        while let Some((_, event)) = self.under_way.front() {
            if !all && !event.try_is_complete().map_err(failed("a step"))? {
                break;
            }
            self.arrive()?;
        }
        Ok(std::mem::take(&mut self.arrived))
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        self.take(true).ok();
    }
}
