//! What a check-up found, how bad each of it is, and what follows.

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Fine,
    /// Good to know.
    Note,
    /// Training works, better without it.
    Warning,
    /// To be dealt with first.
    Problem,
}

impl Level {
    /// By the share of pictures concerned: nothing is fine, up to `note` a note, up to `warning` a warning.
    #[must_use]
    pub fn by_share(count: usize, of: usize, note: f64, warning: f64) -> Self {
        let share = count as f64 / of.max(1) as f64;
        match count {
            0 => Self::Fine,
            _ if share <= note => Self::Note,
            _ if share <= warning => Self::Warning,
            _ => Self::Problem,
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// A stable name, for programs.
    pub code: &'static str,
    /// How bad it is.
    pub level: Level,
    /// Pictures or files concerned.
    pub count: usize,
    /// What was found, in a sentence.
    pub text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// Some of the files concerned.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
}

impl Finding {
    /// A finding without advice and examples.
    #[must_use]
    pub fn new(code: &'static str, level: Level, count: usize, text: impl Into<String>) -> Self {
        Self { code, level, count, text: text.into(), advice: None, examples: Vec::new() }
    }

    /// With what to do, where it is worse than fine.
    #[must_use]
    pub fn advice(mut self, advice: impl Into<String>) -> Self {
        if self.level > Level::Fine {
            self.advice = Some(advice.into());
        }
        self
    }

    /// With some of the files.
    #[must_use]
    pub fn examples(mut self, examples: impl IntoIterator<Item = String>) -> Self {
        self.examples.extend(examples);
        self
    }
}

/// Whether the folder can be trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing stands in the way.
    Good,
    /// It can be trained on; some of it could be better.
    Usable,
    /// Something has to be dealt with first.
    ProblemsFirst,
}

impl Verdict {
    /// From the worst finding.
    #[must_use]
    pub fn of(findings: &[Finding]) -> Self {
        match findings.iter().map(|f| f.level).max() {
            Some(Level::Problem) => Self::ProblemsFirst,
            Some(Level::Warning) => Self::Usable,
            _ => Self::Good,
        }
    }

    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Usable => "usable",
            Self::ProblemsFirst => "problems first",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides() {
        let at = |level| Finding::new("x", level, 1, "");
        assert_eq!(Verdict::of(&[]), Verdict::Good);
        assert_eq!(Verdict::of(&[at(Level::Fine), at(Level::Note)]), Verdict::Good);
        assert_eq!(Verdict::of(&[at(Level::Warning), at(Level::Note)]), Verdict::Usable);
        assert_eq!(Verdict::of(&[at(Level::Warning), at(Level::Problem)]), Verdict::ProblemsFirst);
        let levels = [0, 1, 5, 50].map(|n| Level::by_share(n, 100, 0.01, 0.1));
        assert_eq!(levels, [Level::Fine, Level::Note, Level::Warning, Level::Problem]);
        assert_eq!(Finding::new("x", Level::Fine, 0, "").advice("none").advice, None);
    }
}
