//! One picture file: read within bounds, decoded, shrunk.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use fast_image_resize as fir;
use latentd_model::decode::{Extent, decode_as};
use latentd_model::{DecodeLimits, Decoding, Pixels};
use sha2::{Digest, Sha256};

/// A picture and the SHA-256 of its file.
pub(super) struct Decoded {
    pub(super) pixels: Pixels,
    pub(super) digest: [u8; 32],
}

/// Reads, decodes and shrinks one file; the error is the reason to skip it.
pub(super) fn load(
    path: &Path,
    shortest_edge: u32,
    limits: &DecodeLimits,
    resizer: &mut fir::Resizer,
) -> Result<Decoded, String> {
    let bytes = read_bounded(path, limits.max_bytes)?;
    let target = |height, width| shrunk(height, width, shortest_edge);
    let decoded = decode_as(&bytes, limits, &Decoding::NEW, &target).map_err(|e| e.to_string())?;
    let digest = Sha256::digest(&bytes).into();
    drop(bytes);
    Ok(Decoded { pixels: shrink(decoded, shortest_edge, resizer)?, digest })
}

/// The file's bytes; a file beyond `max_bytes` is refused before it is read whole.
pub(crate) fn read_bounded(path: &Path, max_bytes: usize) -> Result<Vec<u8>, String> {
    let mut file = File::open(path).map_err(|e| e.to_string())?;
    let size = file.metadata().map_err(|e| e.to_string())?.len();
    if size > max_bytes as u64 {
        return Err(format!("{size} bytes, above the limit of {max_bytes}"));
    }
    let mut bytes = Vec::with_capacity(size as usize + 1);
    Read::by_ref(&mut file).take(max_bytes as u64 + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// Height and width with the shorter side brought down to `shortest_edge`; smaller pictures stay as they are.
fn shrunk(height: u32, width: u32, shortest_edge: u32) -> (u32, u32) {
    let shorter = height.min(width);
    if shorter <= shortest_edge.max(1) {
        return (height, width);
    }
    let scale = f64::from(shortest_edge.max(1)) / f64::from(shorter);
    let side = |s: u32| ((f64::from(s) * scale).round() as u32).max(1);
    (side(height), side(width))
}

fn shrink(
    (pixels, extent): (Pixels, Extent),
    shortest_edge: u32,
    resizer: &mut fir::Resizer,
) -> Result<Pixels, String> {
    let (new_height, new_width) = shrunk(extent.height, extent.width, shortest_edge);
    let (height, width) = (pixels.height(), pixels.width());
    if (new_height, new_width) == (height, width) {
        return Ok(pixels);
    }
    let source = fir::images::ImageRef::new(width, height, pixels.as_bytes(), fir::PixelType::U8x3)
        .map_err(|e| e.to_string())?;
    let mut target = fir::images::Image::new(new_width, new_height, fir::PixelType::U8x3);
    let part = extent.part();
    let options = fir::ResizeOptions::new()
        .resize_alg(fir::ResizeAlg::Convolution(fir::FilterType::CatmullRom))
        .crop(part.left, part.top, part.width, part.height)
        .use_alpha(false);
    resizer.resize(&source, &mut target, &options).map_err(|e| e.to_string())?;
    Pixels::new(new_height, new_width, target.into_vec()).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_above_the_limit_are_refused_unread() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jpg");
        std::fs::write(&path, [7; 11]).unwrap();
        assert_eq!(read_bounded(&path, 11).unwrap(), [7; 11]);
        let reason = read_bounded(&path, 10).unwrap_err();
        assert!(reason.contains("above the limit of 10"), "{reason}");
    }

    #[test]
    fn shrinking_keeps_the_shape_and_leaves_small_pictures_alone() {
        let mut resizer = fir::Resizer::new();
        let picture = |h, w| Pixels::new(h, w, vec![9; (h * w * 3) as usize]).unwrap();
        let mut sides = |h, w| {
            let picture = picture(h, w);
            let extent = Extent::of(&picture);
            let p = shrink((picture, extent), 16, &mut resizer).unwrap();
            (p.height(), p.width())
        };
        assert_eq!(sides(40, 80), (16, 32));
        assert_eq!(sides(300, 17), (282, 16));
        assert_eq!(sides(16, 400), (16, 400));
        assert_eq!(sides(3, 5), (3, 5));
    }
}
