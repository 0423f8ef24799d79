//! The whole check-up of a folder, alone or against a second one.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::findings::{Finding, Level, Verdict};
use super::judge;
use super::layout::Layout;
use super::suggestion::{Suggestion, suggest};
use super::survey::Survey;
use super::twins::{Copies, Group, Leak, copies, leaks};
use crate::eval::machine;

/// How large the pictures are: the quantiles 1, 25, 50, 75 and 99 %.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sizes {
    /// Shorter side in pixels.
    pub shorter: [f64; 5],
    /// Longer side in pixels.
    pub longer: [f64; 5],
    /// Longer side by shorter side.
    pub aspect: [f64; 5],
    /// Size of a file in bytes.
    pub bytes: [f64; 5],
}

/// Groups of copies in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CopyCount {
    /// Groups of two or more.
    pub groups: usize,
    /// Pictures that could go without losing one.
    pub spare: usize,
    /// Pictures of the largest group.
    pub largest: usize,
}

impl CopyCount {
    fn of(groups: &[Group]) -> Self {
        let largest = groups.iter().map(Vec::len).max().unwrap_or(0);
        Self { groups: groups.len(), spare: Copies::spare(groups), largest }
    }
}

/// Pictures of a second folder that are in the first one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leakage {
    /// The second folder.
    pub folder: String,
    /// Its readable pictures.
    pub pictures: usize,
    /// Those with equal bytes in the first folder.
    pub exact: usize,
    /// Further ones that look like one in the first folder.
    pub near: usize,
}

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checkup {
    /// The folder as given.
    pub folder: String,
    /// Picture files in it.
    pub listed: usize,
    /// Those that were looked at and can be read.
    pub pictures: usize,
    /// Those that were looked at and cannot.
    pub unreadable: usize,
    /// Files that are no pictures.
    pub other_files: usize,
    /// Bytes of the readable ones.
    pub bytes: u64,
    /// Pictures of each format.
    pub formats: BTreeMap<String, usize>,
    /// Sizes, where there is a picture.
    pub sizes: Option<Sizes>,
    /// The layout.
    pub layout: Layout,
    /// Pictures without colour.
    pub grey: usize,
    /// Files of equal bytes.
    pub exact_duplicates: CopyCount,
    /// Pictures that look alike, beyond those.
    pub near_duplicates: CopyCount,
    /// The second folder, if there was one.
    pub against: Option<Leakage>,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
    /// Whether to go on.
    pub verdict: Verdict,
    /// Where to begin, where there is a picture.
    pub suggestion: Option<Suggestion>,
    /// Seconds that the check-up took.
    pub seconds: f64,
    /// The machine, for the times.
    pub machine: String,
    /// Every file that a finding is about.
    #[serde(skip)]
    pub concerned: Vec<Concerned>,
}

/// A file that a finding is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concerned {
    /// Code of the finding.
    pub code: &'static str,
    /// Number of the group of copies, from 1; 0 for none.
    pub group: usize,
    /// The file, relative to its folder.
    pub path: String,
    /// What is the matter with it.
    pub detail: String,
}

/// Judges a surveyed folder, against a second one if there is one; `root` and `other`'s root are how they were called.
#[must_use]
pub fn examine(survey: &Survey, other: Option<&Survey>) -> Checkup {
    let root: &Path = &survey.root;
    let copies = copies(survey);
    let leaks: Option<Vec<Leak>> = other.map(|other| leaks(survey, other));
    let layout = Layout::of(survey.pictures.iter().map(|(p, _)| p.as_path()));
    let leakage = other.zip(leaks.as_ref()).map(|(other, leaks)| Leakage {
        folder: other.root.display().to_string(),
        pictures: other.pictures.len(),
        exact: leaks.iter().filter(|l| l.near.is_none()).count(),
        near: leaks.iter().filter(|l| l.near.is_some()).count(),
    });
    let evidence =
        judge::Evidence { survey, copies: &copies, layout: &layout, other, leaks: leaks.as_deref() };
    let (mut findings, concerned) = judge::findings(&evidence);
    findings.sort_by_key(|f| std::cmp::Reverse(f.level));
    let mut formats: BTreeMap<String, usize> = BTreeMap::new();
    for (_, facts) in &survey.pictures {
        *formats.entry(facts.kind.to_string()).or_default() += 1;
    }
    Checkup {
        folder: root.display().to_string(),
        listed: survey.listed,
        pictures: survey.pictures.len(),
        unreadable: survey.refused.len(),
        other_files: survey.others.len(),
        bytes: survey.pictures.iter().map(|(_, f)| f.bytes).sum(),
        formats,
        sizes: sizes(survey),
        layout,
        grey: survey.pictures.iter().filter(|(_, f)| f.grey).count(),
        exact_duplicates: CopyCount::of(&copies.exact),
        near_duplicates: CopyCount::of(&copies.near),
        against: leakage,
        verdict: Verdict::of(&findings),
        findings,
        suggestion: suggest(survey, root),
        seconds: survey.seconds + other.map_or(0.0, |o| o.seconds),
        machine: machine(),
        concerned,
    }
}

fn sizes(survey: &Survey) -> Option<Sizes> {
    const AT: [f64; 5] = [0.01, 0.25, 0.5, 0.75, 0.99];
    Some(Sizes {
        shorter: survey.quantiles(AT, |f| f64::from(f.shorter()))?,
        longer: survey.quantiles(AT, |f| f64::from(f.height.max(f.width)))?,
        aspect: survey.quantiles(AT, super::facts::Facts::aspect)?,
        bytes: survey.quantiles(AT, |f| f.bytes as f64)?,
    })
}

impl Checkup {
    /// Findings that are not fine.
    pub fn complaints(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| f.level > Level::Fine)
    }

    /// Every file that a finding is about, as tab-separated lines with a header.
    #[must_use]
    pub fn list(&self) -> String {
        let clean = |s: &str| s.replace(['\t', '\n', '\r'], " ");
        let mut out = "finding\tgroup\tfile\tdetail\n".to_owned();
        for c in &self.concerned {
            out.push_str(&format!("{}\t{}\t{}\t{}\n", c.code, c.group, clean(&c.path), clean(&c.detail)));
        }
        out
    }
}
