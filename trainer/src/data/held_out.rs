//! Pictures that a run looks at but does not train on.

/// Indices of `count` of `total` pictures, evenly spaced.
#[must_use]
pub fn spaced(total: usize, count: usize) -> Vec<u32> {
    let count = count.min(total);
    (0..count).map(|i| ((2 * i + 1) * total / (2 * count)) as u32).collect()
}

/// The indices that [`spaced`] leaves.
pub(super) fn shown(total: usize, held_out: usize) -> Vec<u32> {
    let mut held_out = spaced(total, held_out).into_iter().peekable();
    (0..total as u32).filter(|i| held_out.next_if_eq(i).is_none()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_picture_is_either_held_out_or_shown() {
        assert_eq!(spaced(11, 2), [2, 8]);
        assert_eq!(shown(11, 2), [0, 1, 3, 4, 5, 6, 7, 9, 10]);
        assert_eq!(spaced(3, 9), [0, 1, 2]);
        assert_eq!(shown(4, 0), [0, 1, 2, 3]);
        for (total, count) in [(50_000, 512), (1280, 64), (7, 7)] {
            let mut held = spaced(total, count);
            held.dedup();
            assert_eq!((held.len(), shown(total, count).len()), (count, total - count));
        }
    }
}
