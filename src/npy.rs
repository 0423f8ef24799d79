//! NPY: numpy's file format 1.0 for rows of little-endian f32.
//!
//! <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>

/// Length of [`header`]: fixed, so that a file's row count can be written last.
pub const HEADER_LEN: usize = 128;

/// The header of an array of shape [rows, dim], C order, `<f4`.
#[must_use]
pub fn header(rows: usize, dim: usize) -> [u8; HEADER_LEN] {
    let mut bytes = [b' '; HEADER_LEN];
    bytes[..8].copy_from_slice(b"\x93NUMPY\x01\x00");
    bytes[8..10].copy_from_slice(&((HEADER_LEN - 10) as u16).to_le_bytes());
    // Two 20-digit numbers leave room to spare before the line's end at 128.
    let dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    bytes[10..10 + dict.len()].copy_from_slice(dict.as_bytes());
    bytes[HEADER_LEN - 1] = b'\n';
    bytes
}

/// Appends one row as little-endian f32.
pub fn push_row(out: &mut Vec<u8>, row: &[f32]) {
    out.extend(row.iter().flat_map(|value| value.to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_what_numpy_writes() {
        let bytes = header(usize::MAX, usize::MAX);
        assert_eq!(bytes[HEADER_LEN - 1], b'\n');
        let bytes = header(2, 3);
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
        let text = std::str::from_utf8(&bytes[10..]).unwrap();
        assert_eq!(text.trim_end(), "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }");
        assert_eq!(bytes.len() % 64, 0);
    }
}
