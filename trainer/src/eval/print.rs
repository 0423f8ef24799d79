//! The result of an evaluation as a printed table.

use std::fmt;

use super::table::{EvalRow, EvalTable};

impl fmt::Display for EvalTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} train, {} test pictures, {} classes",
            self.dataset,
            self.train_pictures,
            self.test_pictures,
            self.classes.len()
        )?;
        write!(f, "split: {}", self.split)?;
        if self.skipped > 0 {
            write!(f, "; {} unreadable files skipped", self.skipped)?;
        }
        writeln!(f, "\n")?;
        let label = |r: &EvalRow| self.metric_label(r.metric);
        let wide = |texts: Vec<usize>, least: usize| texts.into_iter().max().unwrap_or(0).max(least);
        let first = wide(self.rows.iter().map(|r| r.subject.chars().count()).collect(), 7);
        let second = wide(self.rows.iter().map(|r| label(r).chars().count()).collect(), 6);
        writeln!(
            f,
            "{:first$}  {:second$}  {:>7}  {:14}  this one ahead by",
            "subject", "metric", "top-1 %", "95 % interval"
        )?;
        writeln!(f, "{}", "─".repeat(first + second + 48))?;
        for row in &self.rows {
            let [low, high] = row.interval.map(|v| v * 100.0);
            let interval = format!("{low:.2} – {high:.2}");
            let behind = match (self.comparison(row), row.remark()) {
                (Some(c), _) => {
                    let [low, high] = c.interval.map(|v| v * 100.0);
                    format!("{:+.2} ({low:+.2} to {high:+.2})", c.difference * 100.0)
                }
                (None, Some(remark)) if !row.baseline => format!("({remark})"),
                _ => String::new(),
            };
            let (label, value) = (label(row), row.value * 100.0);
            let line =
                format!("{:first$}  {label:second$}  {value:7.2}  {interval:14}  {behind}", row.subject);
            writeln!(f, "{}", line.trim_end())?;
        }
        writeln!(f)?;
        for r in &self.representations {
            writeln!(
                f,
                "{:first$}  {} dimensions, std {:.3} (1 spread, 0 collapsed), effective rank {:.1}",
                r.subject, r.dim, r.std, r.effective_rank
            )?;
        }
        if let Some(answer) = &self.answer {
            writeln!(f, "\n{}\n", answer.text)?;
        }
        write!(f, "{:.0} s on {}", self.seconds, self.machine)
    }
}
