//! Text made safe for HTML, pictures as data URIs, and the style sheet.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// `text` with the characters that mean something in HTML replaced; safe in text and in quoted attributes.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Control characters are not allowed in HTML.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A PNG or JPEG as a data URI.
#[must_use]
pub fn data_uri(picture: &[u8]) -> String {
    let kind = if picture.starts_with(b"\x89PNG") { "png" } else { "jpeg" };
    format!("data:image/{kind};base64,{}", STANDARD.encode(picture))
}

/// A number with as many digits as it deserves: 0.0012, 0.996, 12.3, 1,234.
#[must_use]
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let size = value.abs();
    if size == 0.0 {
        "0".to_owned()
    } else if size < 1e-3 {
        format!("{value:.2e}")
    } else if size < 0.1 {
        format!("{value:.4}")
    } else if size < 10.0 {
        format!("{value:.3}")
    } else if size < 1000.0 {
        format!("{value:.1}")
    } else {
        grouped(value)
    }
}

/// A whole number with its thousands set apart.
fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    if value < 0.0 { format!("-{out}") } else { out }
}

/// The style sheet: system fonts, light and dark by the reader's setting, readable in print.
pub const STYLE: &str = include_str!("style.css");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_escapes_the_escape() {
        let bad = "<script>alert(\"x\" & 'y')</script>\u{0}";
        let safe = escape(bad);
        assert_eq!(safe, "&lt;script&gt;alert(&quot;x&quot; &amp; &#39;y&#39;)&lt;/script&gt;\u{fffd}");
    }

    #[test]
    fn numbers_are_readable() {
        let texts: Vec<_> =
            [0.0, 0.00012, 0.0123, 0.99612, 12.345, 1234.5, 9_876_543.2, -4200.0].map(number).into();
        assert_eq!(texts, ["0", "1.20e-4", "0.0123", "0.996", "12.3", "1,234", "9,876,543", "-4,200"]);
        assert_eq!(number(f64::NAN), "–");
    }

    #[test]
    fn data_uris_name_their_kind() {
        assert!(data_uri(b"\x89PNG\r\n").starts_with("data:image/png;base64,iVBORw"));
        assert!(data_uri(b"\xff\xd8").starts_with("data:image/jpeg;base64,"));
    }
}
