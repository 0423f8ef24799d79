//! A folder of pictures, read once, with a progress bar.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context;

use super::{STOP, progress};
use crate::data::{BuildOptions, BuildProgress, DataError, PictureCache, Scan, Skipped, scan};

/// Scans and decodes a folder; files that cannot be read are told and given back.
pub fn load(
    root: &Path,
    shortest_edge: u32,
    options: &BuildOptions,
) -> anyhow::Result<(Arc<PictureCache>, Vec<Skipped>)> {
    let found = scan(root)?;
    let bar = progress::bar(found.pictures.len() as u64, "reading pictures");
    let (cache, unreadable) = PictureCache::build(&found, shortest_edge, options, &mut |so_far| {
        bar.set_position(so_far.done as u64);
        if STOP.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .with_context(|| format!("reading the pictures of {}", root.display()))?;
    bar.finish_and_clear();
    let mut skipped = found.skipped;
    skipped.extend(unreadable);
    tracing::info!("{} pictures in {}", cache.len(), root.display());
    if !skipped.is_empty() {
        tracing::warn!("{} files skipped; the first ones:", skipped.len());
        skipped.iter().take(5).for_each(|s| tracing::warn!("  {}: {}", s.path.display(), s.reason));
    }
    if cache.spilled_bytes() > 0 {
        tracing::info!("{} MiB of pixels lie in a temporary file", cache.spilled_bytes() >> 20);
    }
    Ok((Arc::new(cache), skipped))
}

/// At most `limit` pictures of a folder, evenly spaced, decoded; unreadable ones are passed over.
pub fn sample(root: &Path, shortest_edge: u32, limit: usize) -> Result<PictureCache, DataError> {
    sample_of(scan(root)?, shortest_edge, limit).map(|(cache, _)| cache)
}

/// The same of a folder that was scanned, and the bytes of pixels that it takes.
pub fn sample_of(
    mut found: Scan,
    shortest_edge: u32,
    limit: usize,
) -> Result<(PictureCache, u64), DataError> {
    let step = found.pictures.len().div_ceil(limit).max(1);
    found.pictures = found.pictures.into_iter().step_by(step).collect();
    let mut bytes = 0;
    let go_on = &mut |so_far: BuildProgress| {
        bytes = so_far.bytes;
        ControlFlow::Continue(())
    };
    let (cache, _) = PictureCache::build(&found, shortest_edge, &BuildOptions::default(), go_on)?;
    Ok((cache, bytes))
}
