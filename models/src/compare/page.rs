//! The contact sheet: the pictures whose neighbours changed most, as one HTML page that needs nothing beside it.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{ImageBuffer, Rgb, imageops};

use super::{Comparison, PictureChange};
use crate::gallery::read_picture;
use crate::neighbours::Near;
use crate::pixels::fitted;

/// Longer side of a picture on the page.
const SIDE: u32 = 96;
/// Neighbours shown in a row.
const SHOWN: usize = 10;

/// The page of the `most` pictures whose neighbours changed most. Reads those pictures again.
#[must_use]
pub fn page(comparison: &Comparison, most: usize) -> String {
    let Comparison { old, new, k, .. } = comparison;
    let mut html = String::from("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
    let title = format!("{} → {}", escape(&old.name), escape(&new.name));
    let _ = write!(html, "<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>");
    let _ = write!(
        html,
        "<p>Of each picture's {k} nearest neighbours, <b>{:.1} %</b> are the same with both encoders \
         ({} pictures; by chance it would be {:.1} %). The nearest one is the same for {:.1} %.</p>",
        100.0 * comparison.mean_overlap,
        comparison.pictures.len(),
        100.0 * comparison.overlap_by_chance,
        100.0 * comparison.same_nearest,
    );
    let _ = write!(
        html,
        "<p>contracts {} → {}. Below: the pictures whose neighbours changed most; \
         <span class=\"gone\">gone</span> and <span class=\"come\">new</span> neighbours are framed.</p>",
        old.contract, new.contract
    );
    for change in comparison.changes.iter().take(most) {
        row(&mut html, comparison, change);
    }
    html.push_str("</body></html>\n");
    html
}

fn row(html: &mut String, comparison: &Comparison, change: &PictureChange) {
    let rows = |list: &[Near]| list.iter().map(|near| near.row).collect::<HashSet<_>>();
    let (before, after) = (rows(&change.before), rows(&change.after));
    let _ = write!(html, "<section><div class=\"query\">");
    picture(html, comparison, change.row, "", &format!("overlap {:.0} %", 100.0 * change.overlap));
    html.push_str("</div><div class=\"lists\">");
    for (name, list, other, class) in
        [("before", &change.before, &after, "gone"), ("after", &change.after, &before, "come")]
    {
        let _ = write!(html, "<div class=\"list\"><h2>{name}</h2>");
        for near in list.iter().take(SHOWN) {
            let class = if other.contains(&near.row) { "" } else { class };
            picture(html, comparison, near.row, class, &format!("{:.3}", near.cosine));
        }
        html.push_str("</div>");
    }
    html.push_str("</div></section>");
}

fn picture(html: &mut String, comparison: &Comparison, row: u32, class: &str, caption: &str) {
    let path = comparison.pictures.get(row as usize).map_or(Path::new(""), |path| path.as_path());
    let name = escape(&path.display().to_string());
    let source = thumbnail(path)
        .map_or_else(String::new, |jpeg| format!("src=\"data:image/jpeg;base64,{}\"", STANDARD.encode(jpeg)));
    let _ = write!(
        html,
        "<figure class=\"{class}\" title=\"{name}\"><img alt=\"{name}\" {source}><figcaption>{caption}</figcaption></figure>"
    );
}

/// A small JPEG of a picture file; none when it cannot be read any more.
fn thumbnail(path: &Path) -> Option<Vec<u8>> {
    let pixels = read_picture(path).ok()?;
    let (width, height) = (pixels.width(), pixels.height());
    let picture = ImageBuffer::<Rgb<u8>, &[u8]>::from_raw(width, height, pixels.as_bytes())?;
    let mut jpeg = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, 82);
    match fitted(height, width, SIDE) {
        whole if whole == (height, width) => encoder.encode_image(&picture),
        (height, width) => encoder.encode_image(&imageops::thumbnail(&picture, width, height)),
    }
    .ok()?;
    Some(jpeg)
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

const STYLE: &str = "\
:root{color-scheme:light dark;font:15px/1.5 system-ui,sans-serif}body{max-width:1300px;margin:2rem auto;padding:0 1rem}\
section{display:flex;gap:1rem;align-items:center;border-top:1px solid #8884;padding:.6rem 0}\
.list{display:flex;gap:.25rem;align-items:center;flex-wrap:wrap}h2{font-size:.8rem;width:3.4rem;margin:0;opacity:.7}\
figure{margin:0;padding:3px;border:3px solid transparent;border-radius:6px;text-align:center}\
img{width:80px;height:80px;object-fit:contain;background:#8882}figcaption{font-size:.7rem;opacity:.8}\
.query img{width:112px;height:112px}figure.gone{border-color:#d1495b}figure.come{border-color:#2a9d5c}\
span.gone{border-bottom:3px solid #d1495b}span.come{border-bottom:3px solid #2a9d5c}";
