//! The image size that suits a folder, and the command to begin with.

use std::path::Path;

use serde::Serialize;

use super::survey::Survey;
use crate::config::RunConfig;

/// Sizes worth training at; 224 is the paper's.
const SIZES: [usize; 5] = [32, 64, 96, 128, 224];
/// The largest that a CPU trains at in hours rather than weeks.
const CPU_SIZE: usize = 64;

/// From here on few passes over the pictures are enough.
const MANY: usize = 20_000;

/// Where to begin.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Suggestion {
    /// Height and width of a view in pixels, for a CPU.
    pub image_size: usize,
    /// The largest size that three quarters of the pictures fill, for a GPU.
    pub largest_image_size: usize,
    /// The configuration to start from, as `train --preset` names it.
    pub preset: &'static str,
    /// Bytes of memory (or of a temporary file) that the pictures take at that size.
    pub cache_bytes: u64,
    /// Seconds that reading and decoding them takes, once, on this machine.
    pub decode_seconds: f64,
    /// The command.
    pub command: String,
}

/// What the pictures are called: the folder's name, or its parent's where that says nothing.
fn run_name(root: &Path) -> String {
    let names = root.iter().rev().map(|n| n.to_string_lossy().to_lowercase());
    let telling =
        |n: &String| !["train", "images", "pictures", "photos", "data", ".", "..", "/"].contains(&n.as_str());
    names.take(2).find(telling).unwrap_or_else(|| "mine".to_owned())
}

/// A suggestion for a folder with pictures; `root` is how the person called it.
#[must_use]
pub fn suggest(survey: &Survey, root: &Path) -> Option<Suggestion> {
    let [quarter] = survey.quantiles([0.25], |f| f64::from(f.shorter()))?;
    let largest = SIZES.into_iter().rev().find(|s| *s as f64 <= quarter).unwrap_or(SIZES[0]);
    let image_size = largest.min(CPU_SIZE);
    let usable =
        survey.pictures.len() * survey.listed / (survey.pictures.len() + survey.refused.len()).max(1);
    let preset = match (image_size, usable) {
        (64.., ..MANY) => "small-data",
        (_, MANY..) => "cifar",
        _ => "small-cpu",
    };
    let edge = RunConfig { image_size, ..RunConfig::default() }.shortest_edge();
    let name: String =
        run_name(root).chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let shown = super::text::quoted(&root.display().to_string());
    Some(Suggestion {
        image_size,
        largest_image_size: largest,
        preset,
        cache_bytes: survey.cache_bytes(edge),
        decode_seconds: survey.decode_seconds(),
        command: format!(
            "latentd-trainer train {shown} --preset {preset} --image-size {image_size} --hours 2 --out runs/{name}"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::survey::SurveyOptions;
    use std::ops::ControlFlow;

    #[test]
    fn follows_the_pictures_and_their_number() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..40u32 {
            let picture = image::RgbImage::from_fn(150, 100, |x, y| image::Rgb([x as u8, y as u8, i as u8]));
            picture.save(dir.path().join(format!("{i}.png"))).unwrap();
        }
        let survey =
            Survey::of(dir.path(), &SurveyOptions::default(), &mut |_| ControlFlow::Continue(())).unwrap();
        let found = suggest(&survey, Path::new("/data/my pictures")).unwrap();
        assert_eq!((found.image_size, found.largest_image_size, found.preset), (64, 96, "small-data"));
        // 40 pictures of 100 × 150 are below the edge of 128 and stay as they are.
        assert_eq!(found.cache_bytes, 40 * 100 * 150 * 3);
        assert!(
            found.command.contains("'/data/my pictures' --preset small-data --image-size 64"),
            "{}",
            found.command
        );
        assert!(found.command.ends_with("--out runs/my-pictures"));
        assert_eq!(run_name(Path::new("/x/cifar10/train/")), "cifar10");
        assert_eq!(run_name(Path::new("./pictures")), "mine");
        assert_eq!(suggest(&Survey::default(), Path::new("x")), None);
    }
}
