//! How a folder is laid out: flat, a folder for each class, or parts such as train and test.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

/// Names of parts that a data set is divided into.
const PARTS: [&str; 6] = ["train", "test", "val", "valid", "validation", "unlabelled"];
/// With more folders than this they are no classes.
const MOST_CLASSES: usize = 2000;

/// The layout, as far as names tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Layout {
    /// All pictures in the folder itself.
    Flat,
    /// A folder for each class, as far as can be told.
    Classes {
        /// Pictures of each, sorted by name.
        classes: BTreeMap<String, usize>,
        /// Pictures outside all of them.
        loose: usize,
    },
    /// Parts such as train/ and test/ below the folder.
    Parts {
        /// Pictures of each part.
        parts: BTreeMap<String, usize>,
    },
    /// Folders in folders whose names say nothing: dates, users, numbers.
    Nested {
        /// Folders directly below.
        folders: usize,
    },
}

/// A class with its pictures.
pub type ClassSize<'a> = (&'a str, usize);

impl Layout {
    /// Of pictures by their relative paths.
    pub fn of<'p>(paths: impl Iterator<Item = &'p Path>) -> Self {
        let mut folders: BTreeMap<String, usize> = BTreeMap::new();
        let (mut loose, mut deep, mut total) = (0, 0, 0);
        for path in paths {
            total += 1;
            let mut parts = path.components();
            match (parts.next(), parts.clone().count()) {
                (Some(first), below) if below > 0 => {
                    *folders.entry(first.as_os_str().to_string_lossy().into_owned()).or_default() += 1;
                    deep += usize::from(below > 1);
                }
                _ => loose += 1,
            }
        }
        if folders.is_empty() {
            return Self::Flat;
        }
        if folders.keys().any(|name| PARTS.contains(&name.to_lowercase().as_str())) {
            return Self::Parts { parts: folders };
        }
        let classes = folders.len() >= 2 && folders.len() <= MOST_CLASSES.min(total / 2);
        // Folders within the folders, or many more loose pictures than sorted ones: no classes.
        if classes && deep * 2 <= total && loose * 2 <= total {
            return Self::Classes { classes: folders, loose };
        }
        Self::Nested { folders: folders.len() }
    }

    /// The smallest and the largest class with their pictures.
    #[must_use]
    pub fn extremes(&self) -> Option<(ClassSize<'_>, ClassSize<'_>)> {
        let Self::Classes { classes, .. } = self else { return None };
        let smallest = classes.iter().min_by_key(|c| c.1)?;
        let largest = classes.iter().max_by_key(|c| c.1)?;
        Some(((smallest.0, *smallest.1), (largest.0, *largest.1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(paths: &[String]) -> Layout {
        Layout::of(paths.iter().map(Path::new))
    }

    fn files(folders: &[(&str, usize)]) -> Vec<String> {
        folders.iter().flat_map(|(f, n)| (0..*n).map(move |i| format!("{f}{i}.jpg"))).collect()
    }

    #[test]
    fn layouts_by_their_names() {
        assert_eq!(layout(&files(&[("", 5)])), Layout::Flat);
        let classes = layout(&files(&[("cat/", 5), ("dog/", 9), ("", 2)]));
        assert!(matches!(&classes, Layout::Classes { loose: 2, .. }));
        assert_eq!(classes.extremes(), Some((("cat", 5), ("dog", 9))));
        assert!(matches!(layout(&files(&[("train/cat/", 5), ("Test/cat/", 9)])), Layout::Parts { .. }));
        assert_eq!(layout(&files(&[("2024/01/", 5), ("2025/02/", 9)])), Layout::Nested { folders: 2 });
        assert_eq!(layout(&files(&[("all/", 5)])), Layout::Nested { folders: 1 });
    }
}
