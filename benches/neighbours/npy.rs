//! Files of numpy's: float32 in C order. Shared with the benchmark of crates beside.

use crate::Failure;

/// Length and rows of a file of numpy's, read row by row, so that large ones fit.
pub fn rows(path: &str) -> Result<(usize, impl IntoIterator<Item = Vec<f32>>), Failure> {
    use std::io::Read;
    let mut file = std::io::BufReader::new(std::fs::File::open(path)?);
    let mut start = [0; 10];
    file.read_exact(&mut start)?;
    let mut header = vec![0; usize::from(u16::from_le_bytes([start[8], start[9]]))];
    file.read_exact(&mut header)?;
    let header = String::from_utf8_lossy(&header).into_owned();
    let shape = header.split_once("'shape': (").ok_or("no shape")?.1;
    let dim: usize = shape.split([',', ')']).nth(1).ok_or("no second dimension")?.trim().parse()?;
    let mut bytes = vec![0; dim * 4];
    let row = std::iter::from_fn(move || {
        file.read_exact(&mut bytes).ok()?;
        Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    });
    Ok((dim, row))
}

/// All numbers of such a file.
pub fn floats(npy: &[u8]) -> Vec<f32> {
    let header = 10 + usize::from(u16::from_le_bytes([npy[8], npy[9]]));
    npy[header..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
