//! The check-up as a person reads it in a terminal.

use std::fmt;

use super::checkup::Checkup;
use super::findings::{Finding, Level};
use super::layout::Layout;

/// Columns of a line, at most.
const WIDTH: usize = 96;

impl fmt::Display for Checkup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.folder)?;
        for (name, value) in self.facts() {
            writeln!(f, "  {name:<11}{value}")?;
        }
        writeln!(f)?;
        for finding in &self.findings {
            paragraph(f, &format!("  {} ", sign(finding.level)), &finding.text)?;
            for example in &finding.examples {
                writeln!(f, "      {}", shortened(example, WIDTH - 6))?;
            }
            if let Some(advice) = &finding.advice {
                paragraph(f, "    → ", advice)?;
            }
        }
        writeln!(f, "\n  Verdict: {}", self.summary())?;
        if let Some(s) = &self.suggestion {
            writeln!(f)?;
            let larger = if s.largest_image_size > s.image_size {
                format!(" on a CPU; the pictures are large enough for {} on a GPU", s.largest_image_size)
            } else {
                String::new()
            };
            paragraph(f, "  ", &format!("Image size {}{larger}.", s.image_size))?;
            let costs = format!(
                "Reading the pictures takes {} (once, on this machine) and keeping them {}.",
                duration(s.decode_seconds),
                size(s.cache_bytes as f64)
            );
            paragraph(f, "  ", &costs)?;
            writeln!(f, "  Begin with:\n\n    {}", s.command)?;
        }
        Ok(())
    }
}

impl Checkup {
    /// The facts in the order shown.
    #[must_use]
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let formats: Vec<String> = self.formats.iter().map(|(k, n)| format!("{} {k}", count(*n))).collect();
        let mut facts = vec![("pictures", format!("{} ({})", count(self.pictures), size(self.bytes as f64)))];
        if !formats.is_empty() {
            facts.push(("formats", formats.join(", ")));
        }
        if let Some(s) = &self.sizes {
            let [low, _, middle, _, high] = s.shorter;
            let longer = s.longer[2];
            facts.push((
                "size",
                format!(
                    "median {middle:.0} × {longer:.0} pixels; shorter side {low:.0} to {high:.0} (1 to 99 %)"
                ),
            ));
            facts.push((
                "files",
                format!(
                    "median {}, {} to {} (1 to 99 %)",
                    size(s.bytes[2]),
                    size(s.bytes[0]),
                    size(s.bytes[4])
                ),
            ));
        }
        let layout = match &self.layout {
            Layout::Flat => "flat".to_owned(),
            Layout::Classes { classes, loose: 0 } => format!("{} class folders", count(classes.len())),
            Layout::Classes { classes, loose } => {
                format!("{} class folders and {} loose pictures", count(classes.len()), count(*loose))
            }
            Layout::Parts { parts } => parts.keys().cloned().collect::<Vec<_>>().join("/, ") + "/",
            Layout::Nested { folders } => format!("nested, {} at the top", number_of(*folders, "folder")),
        };
        facts.push(("layout", layout));
        facts
    }

    /// The verdict with what it rests on.
    #[must_use]
    pub fn summary(&self) -> String {
        let of = |level| self.findings.iter().filter(|f| f.level == level).count();
        let (problems, warnings) = (of(Level::Problem), of(Level::Warning));
        match (problems, warnings) {
            (0, 0) => "good. Nothing stands in the way of training.".to_owned(),
            (0, w) => format!("usable. {} could be dealt with first (marked !).", number_of(w, "thing")),
            (p, _) => {
                format!(
                    "problems first. {} to deal with before training (marked ✘).",
                    number_of(p, "problem")
                )
            }
        }
    }
}

/// The mark of a level, for a line or a table.
#[must_use]
pub fn sign(level: Level) -> char {
    match level {
        Level::Fine => '✔',
        Level::Note => '·',
        Level::Warning => '!',
        Level::Problem => '✘',
    }
}

/// Text in lines of at most 96 columns, the later ones indented like the first one's text.
fn paragraph(f: &mut fmt::Formatter<'_>, lead: &str, text: &str) -> fmt::Result {
    let indent = lead.chars().count();
    let mut line = lead.to_owned();
    let mut used = indent;
    for word in text.split(' ') {
        let length = word.chars().count();
        if used > indent && used + 1 + length > WIDTH {
            writeln!(f, "{line}")?;
            line = " ".repeat(indent);
            used = indent;
        }
        if used > indent {
            line.push(' ');
            used += 1;
        }
        line.push_str(word);
        used += length;
    }
    writeln!(f, "{line}")
}

/// A text without control characters and of at most `width` characters, cut in the middle.
#[must_use]
pub fn shortened(text: &str, width: usize) -> String {
    let clean: Vec<char> = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if clean.len() <= width {
        return clean.into_iter().collect();
    }
    let (head, tail) = (width * 2 / 3, width - width * 2 / 3 - 1);
    clean[..head].iter().chain(&['…']).chain(&clean[clean.len() - tail..]).collect()
}

/// A whole number with its thousands set apart.
#[must_use]
pub fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A number with what it counts, in its singular or plural.
#[must_use]
pub fn number_of(n: usize, what: &str) -> String {
    format!("{} {what}{}", count(n), if n == 1 { "" } else { "s" })
}

/// A share in per cent, with the digits that it deserves.
#[must_use]
pub fn percent(n: usize, of: usize) -> String {
    let share = 100.0 * n as f64 / of.max(1) as f64;
    match share {
        s if n == 0 || s >= 10.0 => format!("{s:.0} %"),
        s if s >= 0.1 => format!("{s:.1} %"),
        s if s >= 0.001 => format!("{s:.3} %"),
        _ => "below 0.001 %".to_owned(),
    }
}

/// Bytes in a unit that suits.
#[must_use]
pub fn size(bytes: f64) -> String {
    match bytes {
        b if b < 1e3 => format!("{b:.0} B"),
        b if b < 1e6 => format!("{:.1} kB", b / 1e3),
        b if b < 1e9 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.1} GB", b / 1e9),
    }
}

/// Seconds in a unit that suits.
#[must_use]
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => "less than a second".to_owned(),
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// An argument as a shell takes it.
#[must_use]
pub fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:@%+~".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', "'\\''"))
    }
}

/// The complaint that weighs most, for a summary elsewhere.
#[must_use]
pub fn worst(checkup: &Checkup) -> Option<&Finding> {
    checkup.complaints().max_by_key(|f| f.level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(percent(1, 3), "33 %");
        assert_eq!(percent(1, 300), "0.3 %");
        assert_eq!(percent(3, 100_000), "0.003 %");
        assert_eq!(percent(1, 10_000_000), "below 0.001 %");
        assert_eq!([12.0, 4_200.0, 7.3e6, 2.5e9].map(size), ["12 B", "4.2 kB", "7.3 MB", "2.5 GB"]);
        assert_eq!(
            [0.2, 12.4, 600.0, 7200.0].map(duration),
            ["less than a second", "12 s", "10 min", "2.0 h"]
        );
        assert_eq!(quoted("a b'c"), "'a b'\\''c'");
    }

    #[test]
    fn long_names_are_cut_in_the_middle_and_made_harmless() {
        let long = format!("{}\u{1b}[31m.jpg", "x".repeat(200));
        let short = shortened(&long, 50);
        assert_eq!(short.chars().count(), 50);
        assert!(short.contains('…') && !short.contains('\u{1b}'));
    }
}
