//! The parts of the page, one function each; a part without content is empty.

use std::fmt::Write as _;

use super::chart::Chart;
use super::contact::{ContactRow, Thumbnail, ViewExample};
use super::html::{data_uri, escape};
use super::metrics::{MetricRow, series, series_of};
use super::page::ReportInput;
use crate::doctor::text::count;
use crate::eval::{Comparison, EvalRow, EvalTable, Metric};

/// Loss, spread, schedules and speed by epoch.
pub(super) fn curves(metrics: &[MetricRow]) -> String {
    type Field = fn(&MetricRow) -> Option<f64>;
    let charts: [(&str, Field, Option<f64>); 5] = [
        ("Loss", |r| r.loss, None),
        ("Representation std", |r| r.representation_std, Some(0.0)),
        ("Learning rate", |r| r.lr, Some(0.0)),
        ("Tau", |r| r.tau, None),
        ("Images per second", |r| r.images_per_s, Some(0.0)),
    ];
    let drawn: String = charts
        .into_iter()
        .map(|(title, field, include)| Chart { title, series: &series(metrics, field), include }.render())
        .collect();
    if drawn.is_empty() {
        return String::new();
    }
    let verdicts = verdicts(metrics);
    format!(
        "<section>\n<h2>Curves</h2>\n<p class=\"soft small\">By epoch. A pale band is the range of the steps that a point averages. \
         A representation std near 0 means that all pictures get the same vector.</p>\n<div class=\"charts\">{drawn}</div>{verdicts}\n</section>\n"
    )
}

/// What was measured without labels on watched pictures while it trained.
fn verdicts(metrics: &[MetricRow]) -> String {
    type Field = fn(&MetricRow) -> Option<f64>;
    let charts: [(&str, Field, Option<f64>); 5] = [
        ("View retrieval", |r| r.view_retrieval, Some(0.0)),
        ("Effective rank", |r| r.effective_rank, Some(0.0)),
        ("Representation std", |r| r.representation_std, Some(0.0)),
        ("Alignment", |r| r.alignment, Some(0.0)),
        ("Uniformity", |r| r.uniformity, None),
    ];
    let drawn: String = charts
        .into_iter()
        .map(|(title, field, include)| {
            Chart { title, series: &series_of(metrics, "verdict", field), include }.render()
        })
        .collect();
    if drawn.is_empty() {
        return String::new();
    }
    format!(
        "<h3>Without labels, on pictures watched during training</h3>\n<p class=\"soft small\">View retrieval: share of views whose nearest other view is \
         of the same picture. Effective rank: dimensions in use (RankMe). Alignment: mean squared distance of two views of a picture, less is \
         better. Uniformity: less is more evenly spread.</p>\n<div class=\"charts\">{drawn}</div>"
    )
}

/// The table of figures with bars, the classes, and how it was measured.
pub(super) fn evaluation(table: &EvalTable) -> String {
    let mut out = format!(
        "<section>\n<h2>Evaluation</h2>\n<p class=\"soft small\">{}: {} train and {} test pictures of {} classes; {}. \
         Share of test pictures whose class is found, with its 95 % interval; training saw no labels.</p>\n<div class=\"scroll\"><table class=\"figures\">\
         <tr><th>subject</th><th>metric</th><th class=\"num\">top-1 %</th><th class=\"num\">95 % interval</th><th class=\"num\">ahead by</th><th></th></tr>",
        escape(&table.dataset),
        count(table.train_pictures),
        count(table.test_pictures),
        table.classes.len(),
        escape(&table.split.to_string()),
    );
    for row in &table.rows {
        out.push_str(&figure_row(table, row));
    }
    out.push_str("</table></div>\n");
    if !table.comparisons.is_empty() {
        out.push_str(
            "<p class=\"soft small\">Ahead by: points that this encoder is above that row, with the 95 % interval of the difference on the same test \
             pictures (paired bootstrap). HOG with a linear probe stands for hand-made features.</p>\n",
        );
    }
    out.push_str(&spread(table));
    out.push_str(&classes(table));
    let _ = write!(
        out,
        "<p class=\"soft small\">Measured in {:.0} s on {} by</p><pre>{}</pre>\n</section>\n",
        table.seconds,
        escape(&table.machine),
        escape(&table.command)
    );
    out
}

fn figure_row(table: &EvalTable, row: &EvalRow) -> String {
    let [low, high] = row.interval.map(|v| v * 100.0);
    // How a baseline's probe came about is in the JSON; here it would only make the table long.
    let note = row
        .remark()
        .filter(|_| !row.baseline)
        .map_or_else(String::new, |n| format!("<br><span class=\"soft small\">{}</span>", escape(&n)));
    format!(
        "<tr{}><td>{}</td><td>{}{note}</td><td class=\"num\">{:.2}</td><td class=\"num soft\">{low:.2} – {high:.2}</td><td class=\"num\">{}</td><td>{}</td></tr>",
        if row.baseline { "" } else { " class=\"own\"" },
        escape(&row.subject),
        escape(&table.metric_label(row.metric)),
        row.value * 100.0,
        table.comparison(row).map_or_else(String::new, ahead),
        bar(row.value, row.interval)
    )
}

/// A difference with its interval, coloured where it is clear.
fn ahead(c: &Comparison) -> String {
    let class = ["behind", "soft", "ahead"][(c.sign() + 1) as usize];
    let [low, high] = c.interval.map(|v| v * 100.0);
    format!(
        "<b class=\"{class}\">{:+.1}</b> <span class=\"soft small\">{low:+.1} to {high:+.1}</span>",
        c.difference * 100.0
    )
}

/// A bar from 0 to 100 % with its interval as a thin line.
fn bar(value: f64, [low, high]: [f64; 2]) -> String {
    format!(
        "<div class=\"bar\"><i style=\"width:{:.2}%\"></i><u style=\"left:{:.2}%;width:{:.2}%\"></u></div>",
        value * 100.0,
        low * 100.0,
        (high - low) * 100.0
    )
}

fn spread(table: &EvalTable) -> String {
    if table.representations.is_empty() {
        return String::new();
    }
    let mut out = "<h3>Spread of the vectors</h3><div class=\"scroll\"><table><tr><th>subject</th><th class=\"num\">dimensions</th>\
                   <th class=\"num\">std (1 spread, 0 collapsed)</th><th class=\"num\">effective rank</th></tr>"
        .to_owned();
    for r in &table.representations {
        let _ = write!(
            out,
            "<tr><td>{}</td><td class=\"num\">{}</td><td class=\"num\">{:.3}</td><td class=\"num\">{:.1}</td></tr>",
            escape(&r.subject),
            r.dim,
            r.std,
            r.effective_rank
        );
    }
    out.push_str("</table></div>\n");
    out
}

/// Class by class: the encoder's kNN beside that of the best baseline.
fn classes(table: &EvalTable) -> String {
    let own = table.rows.iter().find(|r| !r.baseline && r.metric == Metric::KnnTop1);
    let Some(own) = own.or_else(|| table.rows.first()) else {
        return String::new();
    };
    let best = table
        .rows
        .iter()
        .filter(|r| r.baseline && r.metric.is_nearest())
        .max_by(|a, b| a.value.total_cmp(&b.value));
    let other = best.map_or_else(String::new, |b| {
        format!("<th class=\"num\">{}, {}</th>", escape(&b.subject), escape(&table.metric_label(b.metric)))
    });
    let mut out = format!(
        "<details><summary>Class by class</summary><div class=\"scroll\"><table><tr><th>class</th><th class=\"num\">pictures</th>\
         <th class=\"num\">{}, {}</th>{other}<th></th></tr>",
        escape(&own.subject),
        escape(&table.metric_label(own.metric))
    );
    for (i, class) in own.per_class.iter().enumerate() {
        let beside = best
            .and_then(|b| b.per_class.get(i))
            .map_or_else(String::new, |c| format!("<td class=\"num soft\">{:.1} %</td>", c.value() * 100.0));
        let _ = write!(
            out,
            "<tr class=\"own\"><td>{}</td><td class=\"num soft\">{}</td><td class=\"num\">{:.1} %</td>{beside}<td>{}</td></tr>",
            escape(&class.class),
            class.total,
            class.value() * 100.0,
            bar(class.value(), crate::eval::table::wilson(class.correct, class.total))
        );
    }
    out.push_str("</table></div></details>\n");
    out
}

/// Queries with their neighbours.
pub(super) fn neighbours(rows: &[ContactRow]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let known = rows.iter().flat_map(|r| &r.neighbours).any(|n| n.same_class.is_some());
    let legend = if known {
        " Green frames are of the query's class, red ones are not; training saw no classes."
    } else {
        ""
    };
    let mut out = format!(
        "<section>\n<h2>Nearest neighbours</h2>\n<p class=\"soft small\">Left, framed in blue, a picture chosen by chance; then its nearest others with their \
         cosine.{legend}</p>\n<div class=\"scroll\"><div class=\"sheet\">"
    );
    for row in rows {
        out.push_str(&thumbnail(&row.query, "query"));
        for i in 0..8 {
            match row.neighbours.get(i) {
                Some(n) => out.push_str(&thumbnail(
                    n,
                    match n.same_class {
                        Some(true) => "same",
                        Some(false) => "other",
                        None => "",
                    },
                )),
                None => out.push_str("<figure></figure>"),
            }
        }
    }
    out.push_str("</div></div>\n</section>\n");
    out
}

fn thumbnail(t: &Thumbnail, class: &str) -> String {
    let similarity = t.similarity.map_or_else(String::new, |s| format!("{s:.2} "));
    let caption = escape(&t.caption);
    format!(
        "<figure class=\"{class}\">{}<figcaption title=\"{caption}\">{similarity}{caption}</figcaption></figure>",
        picture(&t.picture, &t.caption)
    )
}

/// PNG thumbnails are of small pictures, shown with their pixels.
fn picture(bytes: &[u8], text: &str) -> String {
    let tiny = if bytes.starts_with(b"\x89PNG") { " class=\"tiny\"" } else { "" };
    format!("<img{tiny} src=\"{}\" alt=\"{}\">", data_uri(bytes), escape(text))
}

/// Pictures with their views.
pub(super) fn views(examples: &[ViewExample]) -> String {
    if examples.is_empty() {
        return String::new();
    }
    let mut out = "<section>\n<h2>What the training sees</h2>\n<p class=\"soft small\">Each picture with one pair of random views; the encoder learns to \
                   predict one from the other.</p>\n<div class=\"pairs\">"
        .to_owned();
    for e in examples {
        let one = |bytes: &[u8], text: &str| {
            format!("<figure>{}<figcaption>{text}</figcaption></figure>", picture(bytes, text))
        };
        let _ = write!(
            out,
            "<div>{}{}{}</div>",
            one(&e.original, "picture"),
            one(&e.view1, "view 1"),
            one(&e.view2, "view 2")
        );
    }
    out.push_str("</div>\n</section>\n");
    out
}

/// Facts, command and configuration.
pub(super) fn reproduce(input: &ReportInput<'_>) -> String {
    let mut out = "<section>\n<h2>How it was made</h2>\n".to_owned();
    if !input.facts.is_empty() {
        out.push_str("<dl>");
        for (name, value) in &input.facts {
            let _ = write!(out, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
        }
        out.push_str("</dl>\n");
    }
    if !input.command.is_empty() {
        let _ = writeln!(
            out,
            "<p class=\"soft small\">The same encoder again:</p><pre>{}</pre>",
            escape(&input.command)
        );
    }
    if !input.config_toml.is_empty() {
        let _ = writeln!(
            out,
            "<details><summary>Configuration</summary><pre>{}</pre></details>",
            escape(&input.config_toml)
        );
    }
    out.push_str("</section>\n");
    out
}
