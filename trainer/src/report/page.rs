//! The whole page.

use std::fmt::Write as _;

use super::contact::{ContactRow, ViewExample};
use super::html::{STYLE, escape, number};
use super::map::Map;
use super::metrics::{MetricRow, final_value, series};
use super::sections::{curves, evaluation, neighbours, reproduce, views};
use super::verdict::{Verdict, verdict};
use crate::doctor::Checkup;
use crate::eval::{EvalTable, Metric};

/// Everything a report tells.
#[derive(Clone, Debug, Default)]
pub struct ReportInput<'a> {
    /// Name of the encoder or run.
    pub title: String,
    /// Facts in the order shown: architecture, parameters, pictures, seed, data fingerprint, duration, machine …
    pub facts: Vec<(String, String)>,
    /// The run's configuration, as TOML.
    pub config_toml: String,
    /// The command that trains the same encoder again.
    pub command: String,
    /// Rows of metrics.jsonl.
    pub metrics: &'a [MetricRow],
    /// The evaluation, if there was one.
    pub eval: Option<&'a EvalTable>,
    /// Queries with their neighbours.
    pub contact_sheet: &'a [ContactRow],
    /// Pictures with their views.
    pub views: &'a [ViewExample],
    /// The embedding as a map.
    pub map: Map,
    /// The check-up of the pictures.
    pub checkup: Option<&'a Checkup>,
}

/// The report as one HTML file: no script, nothing from outside.
#[must_use]
pub fn render(input: &ReportInput<'_>) -> String {
    let verdict = verdict(input.metrics, input.eval);
    let title = escape(&input.title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n\
         <title>{title}: training report</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
    );
    page.push_str(&head(&title, &verdict));
    page.push_str(&tiles(input));
    for section in [
        input.eval.map_or_else(String::new, evaluation),
        neighbours(input.contact_sheet),
        super::map::section(&input.map),
        curves(input.metrics),
        views(input.views),
        super::pictures::section(input.checkup),
        reproduce(input),
    ] {
        page.push_str(&section);
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn head(title: &str, verdict: &Verdict) -> String {
    let word = verdict.level.word();
    let reasons: String = verdict.reasons.iter().map(|r| format!("<li>{}</li>", escape(r))).collect();
    format!(
        "<header><h1>{title}</h1><span class=\"badge {word}\">{word}</span></header>\n<ul class=\"reasons\">{reasons}</ul>\n"
    )
}

/// The figures one looks for first.
fn tiles(input: &ReportInput<'_>) -> String {
    let mut tiles: Vec<(String, String)> = Vec::new();
    if let Some(table) = input.eval {
        for metric in [Metric::KnnTop1, Metric::LinearTop1] {
            if let Some(row) = table.rows.iter().find(|r| !r.baseline && r.metric == metric) {
                tiles.push((format!("{:.1} %", row.value * 100.0), table.metric_label(metric)));
            }
        }
        if let Some(r) = table.representations.first() {
            tiles.push((number(r.effective_rank), format!("effective rank of {}", r.dim)));
        }
    }
    type Field = fn(&MetricRow) -> Option<f64>;
    let fields: [(Field, &str); 3] = [
        (|r| r.representation_std, "representation std"),
        (|r| r.loss, "loss at the end"),
        (|r| r.images_per_s, "images/s in training"),
    ];
    for (field, label) in fields {
        if let Some(value) = final_value(&series(input.metrics, field)) {
            tiles.push((number(value), label.to_owned()));
        }
    }
    if tiles.is_empty() {
        return String::new();
    }
    let mut out = "<div class=\"tiles\">".to_owned();
    for (value, label) in tiles {
        let _ = write!(
            out,
            "<div class=\"tile\"><b>{}</b><span class=\"soft small\">{}</span></div>",
            escape(&value),
            escape(&label)
        );
    }
    out.push_str("</div>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::table::tests::example;
    use crate::report::contact::Thumbnail;

    fn thumbnail(similarity: Option<f32>, same_class: Option<bool>) -> Thumbnail {
        let rgb = [120u8; 12];
        let picture =
            super::super::encode_picture(crate::data::PictureRef::new(2, 2, &rgb).unwrap()).unwrap();
        Thumbnail { picture, caption: "<b>cat</b>".to_owned(), similarity, same_class }
    }

    #[test]
    fn a_full_report_is_complete_escaped_and_self_contained() {
        let metrics: Vec<MetricRow> = (0..50)
            .map(|i| MetricRow {
                kind: "step".to_owned(),
                step: i,
                epoch: i as f64 / 10.0,
                loss: Some(4.0 - i as f64 * 0.05),
                lr: Some(0.1),
                tau: Some(0.99),
                representation_std: Some(0.7),
                images_per_s: Some(120.0),
                ..MetricRow::default()
            })
            .collect();
        let table = example();
        let sheet = [ContactRow {
            query: thumbnail(None, None),
            neighbours: vec![thumbnail(Some(0.91), Some(true)), thumbnail(Some(0.5), Some(false))],
        }];
        let picture = thumbnail(None, None).picture;
        let views = [ViewExample { original: picture.clone(), view1: picture.clone(), view2: picture }];
        let html = render(&ReportInput {
            title: "<script>alert(1)</script>".to_owned(),
            facts: vec![("seed".to_owned(), "7 & 8".to_owned())],
            config_toml: "a = \"<x>\"".to_owned(),
            command: "latentd-trainer train 'a b' --seed 7".to_owned(),
            metrics: &metrics,
            eval: Some(&table),
            contact_sheet: &sheet,
            views: &views,
            ..ReportInput::default()
        });
        assert!(!html.contains("<script") && !html.contains("<b>cat</b>") && !html.contains("\"<x>\""));
        assert!(!html.contains("http://") && !html.contains("https://"), "nothing from outside");
        for part in [
            "doubtful",
            "75.0 %",
            "class=\"curve\"",
            "0.91",
            "7 &amp; 8",
            "&lt;x&gt;",
            "raw pixels",
            "pets &lt;&amp;&gt; more",
        ] {
            assert!(html.contains(part), "{part} is missing");
        }
        for tag in ["section", "figure", "table", "div", "details", "main", "svg"] {
            let count = |text: &str| html.matches(text).count();
            let opened = count(&format!("<{tag} ")) + count(&format!("<{tag}>"));
            assert_eq!(opened, count(&format!("</{tag}>")), "{tag}");
        }
    }

    #[test]
    fn an_empty_report_still_says_what_is_missing() {
        let html = render(&ReportInput { title: "bare".to_owned(), ..ReportInput::default() });
        assert!(html.contains("was not measured") && html.contains("not evaluated"));
        assert!(!html.contains("<section>\n<h2>Curves"));
    }
}
