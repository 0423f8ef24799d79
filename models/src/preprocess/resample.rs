//! Resampling: a picture, or a window of it, at another size, as Pillow's antialiased filters do it.

use std::cell::RefCell;

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use super::{Filter, PreprocessError, divide_rounded};
use crate::decode::{Extent, Part};
use crate::pixels::Pixels;

/// Rows and columns of a picture that are wanted.
#[derive(Clone, Copy)]
pub(super) struct Window {
    top: u32,
    left: u32,
    height: u32,
    width: u32,
}

impl Window {
    /// The middle; offsets as torchvision's `CenterCrop`.
    pub(super) fn centred((whole_height, whole_width): (u32, u32), (height, width): (u32, u32)) -> Self {
        let before = |whole: u32, side: u32| divide_rounded(u64::from(whole - side), 2) as u32;
        Self { top: before(whole_height, height), left: before(whole_width, width), height, width }
    }
}

/// The middle of a picture, at most its own size.
pub(super) fn crop(picture: &Pixels, height: u32, width: u32) -> Result<Pixels, PreprocessError> {
    if (height, width) == (picture.height(), picture.width()) {
        return Ok(picture.clone());
    }
    let Window { top, left, .. } = Window::centred((picture.height(), picture.width()), (height, width));
    let row = picture.width() as usize * 3;
    let kept = left as usize * 3..(left + width) as usize * 3;
    let data = picture
        .as_bytes()
        .chunks_exact(row)
        .skip(top as usize)
        .take(height as usize)
        .flat_map(|pixels| &pixels[kept.clone()])
        .copied()
        .collect();
    pixels(picture, height, width, data)
}

/// Pixels made of a picture.
pub(super) fn pixels(
    picture: &Pixels,
    height: u32,
    width: u32,
    data: Vec<u8>,
) -> Result<Pixels, PreprocessError> {
    Pixels::new(height, width, data).map_err(|e| refuse(picture, &e))
}

fn refuse(picture: &Pixels, reason: &dyn std::fmt::Display) -> PreprocessError {
    PreprocessError::Resize { width: picture.width(), height: picture.height(), reason: reason.to_string() }
}

/// The part of the pixels that is the picture, at another size.
pub(super) fn resize(
    picture: &Pixels,
    extent: Extent,
    height: u32,
    width: u32,
    filter: Filter,
) -> Result<Pixels, PreprocessError> {
    if extent == Extent::of(picture) && (height, width) == (picture.height(), picture.width()) {
        return Ok(picture.clone());
    }
    let mut data = vec![0; height as usize * width as usize * 3];
    Rgb::of(picture)
        .scale(extent.part(), filter, (height, width), &mut data)
        .map_err(|e| refuse(picture, &e))?;
    pixels(picture, height, width, data)
}

/// What a window shows of the picture resized to `whole`, without the rest being made.
///
/// In two calls of the resampler, one for each direction, as it does itself: where both directions begin within the
/// picture its bookkeeping fails, and it reads memory that is not the picture's.
pub(super) fn resample(
    picture: &Pixels,
    extent: Extent,
    whole: (u32, u32),
    window: Window,
    filter: Filter,
) -> Result<Pixels, PreprocessError> {
    let part = extent.part();
    let rows = Side { pixels: picture.height(), offset: part.top, extent: part.height, whole: whole.0 };
    let columns = Side { pixels: picture.width(), offset: part.left, extent: part.width, whole: whole.1 };
    let Window { height, width, .. } = window;
    let (top, bottom) = (rows.source(window.top), rows.source(window.top + height));
    let (left, right) = (columns.source(window.left), columns.source(window.left + width));
    let (first, last) = columns.read(left, right, filter);
    let mut data = vec![0; height as usize * width as usize * 3];
    let resampled = STRIP.with_borrow_mut(|strip| {
        strip.resize(height as usize * (last - first) as usize * 3, 0);
        let (start, kept) = (f64::from(first), f64::from(last - first));
        let down = Part { left: start, top, width: kept, height: bottom - top };
        Rgb::of(picture).scale(down, filter, (height, last - first), strip)?;
        let across = Part { left: left - start, top: 0.0, width: right - left, height: f64::from(height) };
        Rgb { bytes: strip, height, width: last - first }.scale(across, filter, (height, width), &mut data)
    });
    resampled.map_err(|e| refuse(picture, &e))?;
    pixels(picture, height, width, data)
}

thread_local! {
    /// Keeps its buffers from one picture to the next.
    static RESIZER: RefCell<Resizer> = RefCell::new(Resizer::new());
    /// What is between the two directions of a window.
    static STRIP: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// RGB of 8 bits, row by row.
struct Rgb<'a> {
    bytes: &'a [u8],
    height: u32,
    width: u32,
}

impl<'a> Rgb<'a> {
    fn of(picture: &'a Pixels) -> Self {
        Self { bytes: picture.as_bytes(), height: picture.height(), width: picture.width() }
    }

    /// Scales a part of it to height and width; the filter reads pixels beyond the part where there are some.
    fn scale(
        &self,
        part: Part,
        filter: Filter,
        (height, width): (u32, u32),
        into: &mut [u8],
    ) -> Result<(), String> {
        let source = TypedImageRef::<U8x3>::from_buffer(self.width, self.height, self.bytes)
            .map_err(|e| e.to_string())?;
        let mut target = TypedImage::<U8x3>::from_buffer(width, height, into).map_err(|e| e.to_string())?;
        let filter = match filter {
            Filter::Bilinear => FilterType::Bilinear,
            // Keys' cubic with a = -0.5, which Pillow calls bicubic.
            Filter::Bicubic => FilterType::CatmullRom,
        };
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).crop(
            part.left,
            part.top,
            part.width,
            part.height,
        );
        RESIZER
            .with_borrow_mut(|resizer| resizer.resize_typed(&source, &mut target, &options))
            .map_err(|e| e.to_string())
    }
}

/// The rows of a picture, or its columns, on their way to another number of them.
struct Side {
    pixels: u32,
    /// Pixels before the first that is the picture's.
    offset: f64,
    /// Pixels that are the picture's.
    extent: f64,
    /// What they become.
    whole: u32,
}

impl Side {
    /// Where the edge before one of the new pixels lies in the old, on a grid on which sums of such places are exact:
    /// a box that ends beyond the pixels by rounding is refused by the resampler, or worse.
    fn source(&self, edge: u32) -> f64 {
        let &Self { pixels, offset, extent, whole } = self;
        let bits_of_pixels = u32::BITS - pixels.leading_zeros();
        let steps = f64::exp2(f64::from(f64::MANTISSA_DIGITS - bits_of_pixels));
        ((offset + extent * f64::from(edge) / f64::from(whole)) * steps).round() / steps
    }

    /// The pixels that the filter may read for what lies between these places.
    fn read(&self, from: f64, to: f64, filter: Filter) -> (u32, u32) {
        let support = match filter {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        };
        // One more than it reaches, so that nothing depends on how its reach is rounded.
        let reach = support * (self.extent / f64::from(self.whole)).max(1.0) + 1.0;
        let last = (to + reach).ceil().min(f64::from(self.pixels));
        ((from - reach).floor().max(0.0) as u32, last as u32)
    }
}
