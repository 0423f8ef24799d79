//! What the pictures are: the check-up's facts and complaints.

use std::fmt::Write as _;

use super::html::escape;
use crate::doctor::{Checkup, Level};

/// The section; nothing without a check-up.
pub(super) fn section(checkup: Option<&Checkup>) -> String {
    let Some(checkup) = checkup else { return String::new() };
    let mut out = "<section>\n<h2>The pictures</h2>\n<dl>".to_owned();
    for (name, value) in checkup.facts() {
        let _ = write!(out, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(&value));
    }
    out.push_str("</dl>\n");
    let complaints: Vec<_> = checkup.complaints().collect();
    if !complaints.is_empty() {
        out.push_str("<ul class=\"complaints\">");
        for c in complaints {
            let class = match c.level {
                Level::Problem => "bad",
                Level::Warning => "warn",
                _ => "note",
            };
            let _ = write!(out, "<li class=\"{class}\">{}", escape(&c.text));
            if let Some(advice) = &c.advice {
                let _ = write!(out, "<br><span class=\"soft small\">{}</span>", escape(advice));
            }
            out.push_str("</li>");
        }
        out.push_str("</ul>\n");
    }
    out.push_str("<p class=\"soft small\">By <code>latentd-trainer doctor</code>, which also names the files.</p>\n</section>\n");
    out
}
