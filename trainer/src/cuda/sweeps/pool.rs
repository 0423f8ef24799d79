//! Max-pool, average pool, and the views' way into a map.

use super::super::device::{Address, Arg, Device, Result};
use super::super::memory::Buffer;
use super::{flat, int, kind, long, over_maps, pack};

/// Sizes of maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapShape {
    /// Images.
    pub images: usize,
    /// Rows.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Values of a pixel.
    pub channels: usize,
}

impl MapShape {
    /// Pixels of all images.
    pub fn pixels(&self) -> usize {
        self.images * self.height * self.width
    }

    /// The sizes after [`max_pool`].
    pub fn pooled(self) -> Self {
        Self { height: self.height.div_ceil(2), width: self.width.div_ceil(2), ..self }
    }
}

/// 3×3 maximum at stride 2 and padding 1; `index` (u8) says for the way back which pixel it was.
pub fn max_pool<D: Device>(
    device: &D,
    x: &Buffer<D>,
    y: &Buffer<D>,
    index: &Buffer<D>,
    of: MapShape,
) -> Result<()> {
    let (kernel, values) = over_maps("max_pool", device.precision(), of.channels);
    let outputs = of.pooled().pixels() * of.channels / values;
    let args =
        [x.arg(), y.arg(), index.arg(), long(outputs), int(of.height), int(of.width), int(of.channels)];
    flat(device, &kernel, outputs, &args)
}

/// The gradient of [`max_pool`]'s input out of `dy` (+ `dy2`).
pub fn max_pool_backward<D: Device>(
    device: &D,
    (dy, dy2): (&Buffer<D>, Option<&Buffer<D>>),
    index: &Buffer<D>,
    dx: &Buffer<D>,
    of: MapShape,
) -> Result<()> {
    let (kernel, values) = over_maps("max_pool_backward", device.precision(), of.channels);
    let inputs = of.pixels() * of.channels / values;
    let dy2 = Arg::At(dy2.map_or(0, Buffer::at));
    let sizes = [int(of.height), int(of.width), int(of.channels)];
    let args = [dy.arg(), dy2, index.arg(), dx.arg(), long(inputs), sizes[0], sizes[1], sizes[2]];
    flat(device, &kernel, inputs, &args)
}

/// Mean over an image's pixels: `mean` in f32, `y` as the next layer reads it.
pub fn average_pool<D: Device>(
    device: &D,
    x: &Buffer<D>,
    mean: &Buffer<D>,
    y: &Buffer<D>,
    of: MapShape,
) -> Result<()> {
    let (kernel, values) = over_maps("average_pool", device.precision(), of.channels);
    let outputs = of.images * of.channels / values;
    let pixels = int(of.height * of.width);
    flat(device, &kernel, outputs, &[x.arg(), mean.arg(), y.arg(), long(outputs), pixels, int(of.channels)])
}

/// The gradient of [`average_pool`]'s input.
pub fn average_pool_backward<D: Device>(
    device: &D,
    dy: &Buffer<D>,
    dx: &Buffer<D>,
    of: MapShape,
) -> Result<()> {
    let (kernel, values) = over_maps("average_pool_backward", device.precision(), of.channels);
    let inputs = of.pixels() * of.channels / values;
    let pixels = int(of.height * of.width);
    flat(device, &kernel, inputs, &[dy.arg(), dx.arg(), long(inputs), pixels, int(of.channels)])
}

/// Views `[pixels, 3]` f32 into pixels of one pack.
pub fn pack_views<D: Device>(device: &D, views: Address, x: &Buffer<D>, pixels: usize) -> Result<()> {
    let precision = device.precision();
    let kernel = format!("pack_views_{}x{}", kind(precision), pack(precision));
    flat(device, &kernel, pixels, &[Arg::At(views), x.arg(), long(pixels)])
}
