//! Feature maps whose memory is used again, step after step.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::kernels::geometry::Geometry;
use super::kernels::norm::Maps;

/// Memory of feature maps that are not in use, by geometry.
///
/// A step asks for the same geometries as the step before, so after the first one nothing is
/// allocated, and the zero borders (which no kernel writes) are still zero.
#[derive(Debug, Default)]
pub struct Pool(Mutex<HashMap<Geometry, Vec<Vec<f32>>>>);

impl Pool {
    /// A map whose border is zero and whose pixels hold anything.
    pub fn take(self: &Arc<Self>, at: Geometry) -> Buffer {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&at).and_then(Vec::pop);
        let data = free.unwrap_or_else(|| vec![0f32; at.len()]);
        Buffer { at, data, pool: self.clone() }
    }

    /// Lets go of all memory that is not in use.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A batch of feature maps; its memory goes back to the pool when it is dropped.
#[derive(Debug)]
pub struct Buffer {
    /// Where pixels lie.
    pub at: Geometry,
    /// Values.
    pub data: Vec<f32>,
    pool: Arc<Pool>,
}

impl Buffer {
    /// To read.
    pub fn maps(&self) -> Maps<'_> {
        Maps { at: self.at, data: &self.data }
    }

    /// To write.
    pub fn parts_mut(&mut self) -> (Geometry, &mut [f32]) {
        (self.at, &mut self.data)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        self.pool.0.lock().unwrap_or_else(PoisonError::into_inner).entry(self.at).or_default().push(data);
    }
}
