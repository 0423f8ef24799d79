//! Which pixels of a picture an encoder of a given size sees, in evaluation and in production.

use latentd_model::{Decoding, Filter, Preprocess, ResizePolicy};

/// The preprocessing of an encoder that takes `image_size` × `image_size` pixels.
///
/// Up to 64 px, where encoders are trained on whole little pictures, the shortest edge is resized
/// to the size itself and the middle is cut out: a square picture is seen whole, one that already
/// has the size is left as it is. Above that the shortest edge is resized to 256/224 of the size
/// first, as BYOL's evaluation does (Grill et al. 2020, appendix C: 256 px, then a centre crop of
/// 224). Bicubic with antialiasing in both cases.
pub fn eval_preprocess(image_size: usize) -> Preprocess {
    let size = u32::try_from(image_size).unwrap_or(u32::MAX);
    let resize_shortest =
        if image_size <= 64 { size } else { (f64::from(size) * 256.0 / 224.0).round() as u32 };
    Preprocess {
        policy: ResizePolicy::ShortestEdgeCenterCrop,
        height: size,
        width: size,
        resize_shortest: Some(resize_shortest),
        filter: Filter::Bicubic,
        background: [255; 3],
        decoding: Decoding::NEW,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_encoders_see_the_whole_square_and_large_ones_byols_crop() {
        assert_eq!(eval_preprocess(32).resize_shortest, Some(32));
        assert_eq!(eval_preprocess(64).resize_shortest, Some(64));
        assert_eq!(eval_preprocess(96).resize_shortest, Some(110));
        assert_eq!(eval_preprocess(224).resize_shortest, Some(256));
        assert_eq!(eval_preprocess(224).width, 224);
    }
}
