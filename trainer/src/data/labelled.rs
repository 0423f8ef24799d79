//! Folders whose sub-folders name classes, for evaluation only; training never looks at them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::DataError;
use super::random::{Purpose, permutation, stream};
use super::scan::{Skipped, check_folder, scan};

/// Pictures with the index of their class.
#[derive(Clone, Debug, Default)]
pub struct Labelled {
    /// The folder that paths are relative to.
    pub root: PathBuf,
    /// Class names, sorted.
    pub classes: Vec<String>,
    /// Pictures relative to `root`, sorted, with the index of their class.
    pub pictures: Vec<(PathBuf, usize)>,
    /// Files that were not used, pictures outside every class folder among them.
    pub skipped: Vec<Skipped>,
}

/// Where the division into train and test came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SplitOrigin {
    /// The folder has one sub-folder for each part.
    Folders {
        /// Name of the part that is learned from.
        train: String,
        /// Name of the part that is asked.
        test: String,
    },
    /// A fifth of every class, chosen by the seed, is asked; the rest is learned from.
    Seeded {
        /// The seed.
        seed: u64,
    },
}

impl std::fmt::Display for SplitOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folders { train, test } => write!(f, "folders {train}/ and {test}/"),
            Self::Seeded { seed } => {
                write!(f, "no test folder: a seeded 80/20 split of every class (seed {seed})")
            }
        }
    }
}

/// A labelled folder in two parts that share their classes.
#[derive(Clone, Debug)]
pub struct LabelledSplits {
    /// What is learned from.
    pub train: Labelled,
    /// What is asked.
    pub test: Labelled,
    /// How they were told apart.
    pub origin: SplitOrigin,
}

/// Reads `root/<class>/**`.
///
/// # Errors
/// When `root` is no folder, or has no class folder with a picture.
pub fn scan_labelled(root: &Path) -> Result<Labelled, DataError> {
    let found = scan(root)?;
    let mut skipped = found.skipped;
    let mut by_class: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in found.pictures {
        let mut parts = path.components();
        match (parts.next(), parts.next()) {
            (Some(class), Some(_)) => {
                by_class.entry(class.as_os_str().to_string_lossy().into_owned()).or_default().push(path);
            }
            _ => skipped.push(Skipped { path, reason: "not inside a class folder".to_owned() }),
        }
    }
    if by_class.is_empty() {
        return Err(DataError::NoClasses(root.to_owned()));
    }
    let mut labelled = Labelled { root: root.to_owned(), skipped, ..Labelled::default() };
    for (label, (class, paths)) in by_class.into_iter().enumerate() {
        labelled.classes.push(class);
        labelled.pictures.extend(paths.into_iter().map(|path| (path, label)));
    }
    Ok(labelled)
}

/// Reads `root/{train,test}/<class>/**` (`val` or `validation` stand in for a missing `test`), otherwise
/// `root/<class>/**` divided by `seed`.
///
/// # Errors
/// As [`scan_labelled`]; and when a part would be empty or only one class is there.
pub fn scan_splits(root: &Path, seed: u64) -> Result<LabelledSplits, DataError> {
    check_folder(root)?;
    let part = |name: &str| root.join(name).is_dir().then(|| name.to_owned());
    let asked = ["test", "val", "validation"].into_iter().find_map(part);
    let splits = match (part("train"), asked) {
        (Some(train), Some(test)) => {
            let (mut a, mut b) = (scan_labelled(&root.join(&train))?, scan_labelled(&root.join(&test))?);
            share_classes(&mut a, &mut b);
            LabelledSplits { train: a, test: b, origin: SplitOrigin::Folders { train, test } }
        }
        _ => divide(scan_labelled(root)?, seed),
    };
    if splits.train.classes.len() < 2 {
        return Err(DataError::Setting(format!(
            "{}: only one class ({}); an evaluation needs at least two",
            root.display(),
            splits.train.classes.join(", ")
        )));
    }
    if splits.train.pictures.is_empty() || splits.test.pictures.is_empty() {
        return Err(DataError::Setting(format!(
            "{}: too few pictures to divide into train and test; give at least two of each class",
            root.display()
        )));
    }
    Ok(splits)
}

/// Gives both parts the union of their classes.
fn share_classes(a: &mut Labelled, b: &mut Labelled) {
    let mut all: Vec<String> = a.classes.iter().chain(&b.classes).cloned().collect();
    all.sort();
    all.dedup();
    for part in [a, b] {
        let place: Vec<usize> = part.classes.iter().map(|c| all.partition_point(|x| x < c)).collect();
        for (_, label) in &mut part.pictures {
            *label = place.get(*label).copied().unwrap_or(*label);
        }
        part.classes.clone_from(&all);
    }
}

/// A fifth of each class, rounded, goes to test; a class of two to four pictures gives one.
fn divide(all: Labelled, seed: u64) -> LabelledSplits {
    let empty = Labelled { root: all.root.clone(), classes: all.classes.clone(), ..Labelled::default() };
    let (mut train, mut test) = (empty.clone(), empty);
    train.skipped = all.skipped;
    let mut order = Vec::new();
    for label in 0..all.classes.len() {
        let members: Vec<&PathBuf> = all.pictures.iter().filter(|p| p.1 == label).map(|p| &p.0).collect();
        let asked = if members.len() < 2 { 0 } else { ((members.len() + 2) / 5).max(1) };
        permutation(&mut stream(seed, Purpose::Split, label as u64, 0), members.len(), &mut order);
        for (rank, &i) in order.iter().enumerate() {
            let part = if rank < asked { &mut test } else { &mut train };
            if let Some(&path) = members.get(i as usize) {
                part.pictures.push((path.clone(), label));
            }
        }
    }
    train.pictures.sort();
    test.pictures.sort();
    LabelledSplits { train, test, origin: SplitOrigin::Seeded { seed } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(root: &Path, class: &str, count: usize) {
        std::fs::create_dir_all(root.join(class)).unwrap();
        for i in 0..count {
            std::fs::write(root.join(class).join(format!("{i:03}.jpg")), b"x").unwrap();
        }
    }

    #[test]
    fn folders_for_train_and_test_share_their_classes() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), "train/cat", 3);
        fill(dir.path(), "train/emu", 2);
        fill(dir.path(), "test/ant", 1);
        fill(dir.path(), "test/emu", 2);
        let splits = scan_splits(dir.path(), 0).unwrap();
        assert_eq!(splits.train.classes, ["ant", "cat", "emu"]);
        assert_eq!(splits.test.classes, splits.train.classes);
        let labels = |l: &Labelled| l.pictures.iter().map(|p| p.1).collect::<Vec<_>>();
        assert_eq!(labels(&splits.train), [1, 1, 1, 2, 2]);
        assert_eq!(labels(&splits.test), [0, 2, 2]);
        assert_eq!(splits.origin.to_string(), "folders train/ and test/");
    }

    #[test]
    fn without_a_test_folder_a_fifth_of_each_class_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), "a", 50);
        fill(dir.path(), "b", 3);
        let one = scan_splits(dir.path(), 1).unwrap();
        assert_eq!((one.train.pictures.len(), one.test.pictures.len()), (42, 11));
        let same = scan_splits(dir.path(), 1).unwrap();
        assert_eq!(one.test.pictures, same.test.pictures);
        assert_ne!(one.test.pictures, scan_splits(dir.path(), 2).unwrap().test.pictures);
        for picture in &one.test.pictures {
            assert!(!one.train.pictures.contains(picture));
        }
        assert!(one.origin.to_string().contains("80/20"));
    }

    #[test]
    fn loose_pictures_are_skipped_and_flat_folders_refused() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), ".", 2);
        assert!(matches!(scan_labelled(dir.path()), Err(DataError::NoClasses(_))));
        fill(dir.path(), "a", 5);
        assert_eq!(scan_labelled(dir.path()).unwrap().skipped.len(), 2);
        assert!(scan_splits(dir.path(), 0).unwrap_err().to_string().contains("only one class"));
    }
}
