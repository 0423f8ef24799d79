//! The device's memory, used again step after step.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::device::{Address, Arg, Device, Result};

/// Memory that is not in use, by size.
///
/// All work is in one order, so memory may be given out again as soon as the calls that use it are
/// made. A step asks for the same sizes as the step before: after the first nothing is allocated.
pub struct Pool<D: Device> {
    device: Rc<D>,
    free: RefCell<HashMap<usize, Vec<Address>>>,
}

impl<D: Device> Pool<D> {
    /// An empty pool.
    pub fn new(device: Rc<D>) -> Rc<Self> {
        Rc::new(Self { device, free: RefCell::default() })
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Memory of at least that many bytes, which hold anything.
    pub fn take(self: &Rc<Self>, bytes: usize) -> Result<Buffer<D>> {
        let bytes = bytes.max(1).next_multiple_of(512);
        let free = self.free.borrow_mut().get_mut(&bytes).and_then(Vec::pop);
        let at = match free {
            Some(at) => at,
            None => self.device.allocate(bytes)?,
        };
        Ok(Buffer { at, bytes, pool: self.clone() })
    }

    /// So many f32, zero.
    pub fn zeros(self: &Rc<Self>, count: usize) -> Result<Buffer<D>> {
        let buffer = self.take(4 * count)?;
        // SAFETY: the buffer is that large.
        unsafe { self.device.zero(buffer.at, buffer.bytes)? };
        Ok(buffer)
    }

    /// A copy of these values.
    pub fn copy_of(self: &Rc<Self>, values: &[f32]) -> Result<Buffer<D>> {
        let buffer = self.take(size_of_val(values))?;
        // SAFETY: the buffer is that large.
        unsafe { self.device.write(buffer.at, values)? };
        Ok(buffer)
    }
}

impl<D: Device> Drop for Pool<D> {
    fn drop(&mut self) {
        for at in self.free.get_mut().drain().flat_map(|(_, all)| all) {
            self.device.release(at);
        }
    }
}

/// A piece of the device's memory; it goes back to the pool when it is dropped.
pub struct Buffer<D: Device> {
    at: Address,
    bytes: usize,
    pool: Rc<Pool<D>>,
}

impl<D: Device> Buffer<D> {
    /// Where it is.
    pub fn at(&self) -> Address {
        self.at
    }

    /// As a kernel's argument.
    pub fn arg(&self) -> Arg {
        Arg::At(self.at)
    }

    /// Its first values; waits for all calls before.
    pub fn to_vec(&self, count: usize) -> Result<Vec<f32>> {
        assert!(4 * count <= self.bytes);
        let mut values = vec![0f32; count];
        // SAFETY: the buffer is that large.
        unsafe { self.pool.device.read(self.at, &mut values)? };
        Ok(values)
    }

    /// Writes its first values; waits for all calls before.
    pub fn write(&self, values: &[f32]) -> Result<()> {
        assert!(size_of_val(values) <= self.bytes);
        // SAFETY: the buffer is that large.
        unsafe { self.pool.device.write(self.at, values) }
    }

    /// Zeroes it.
    pub fn clear(&self) -> Result<()> {
        // SAFETY: the buffer is that large.
        unsafe { self.pool.device.zero(self.at, self.bytes) }
    }
}

impl<D: Device> Drop for Buffer<D> {
    fn drop(&mut self) {
        self.pool.free.borrow_mut().entry(self.bytes).or_default().push(self.at);
    }
}
