//! A line chart as inline SVG.

use std::fmt::Write as _;

use super::html::{escape, number};

const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 170.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 8.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 24.0;
/// Points that a curve is drawn with; more are averaged.
const POINTS: usize = 240;

/// What a chart shows.
#[derive(Clone, Debug)]
pub struct Chart<'a> {
    /// Name of the curve.
    pub title: &'a str,
    /// `(epoch, value)`, by epoch.
    pub series: &'a [(f64, f64)],
    /// A value the axis must include.
    pub include: Option<f64>,
}

/// Several neighbouring points as one.
struct Bucket {
    x: f64,
    mean: f64,
    low: f64,
    high: f64,
}

impl Chart<'_> {
    /// The chart as a figure, or nothing when there is no point.
    #[must_use]
    pub fn render(&self) -> String {
        let buckets = buckets(self.series);
        let (Some(first), Some(last)) = (buckets.first(), buckets.last()) else {
            return String::new();
        };
        let low = buckets.iter().map(|b| b.low).chain(self.include).fold(f64::INFINITY, f64::min);
        let high = buckets.iter().map(|b| b.high).chain(self.include).fold(f64::NEG_INFINITY, f64::max);
        let ticks_y = ticks(low, high, 4);
        let (y0, y1) = span(&ticks_y, low, high);
        let (x0, x1) = (first.x, if last.x > first.x { last.x } else { first.x + 1.0 });
        let x = |v: f64| LEFT + (v - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
        let y = |v: f64| TOP + (y1 - v) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
        let title = escape(self.title);
        let latest = self.series.last().map_or_else(String::new, |p| number(p.1));
        let mut svg = format!(
            "<figure><figcaption><b>{title}</b><span>last {latest}</span></figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title} by epoch, last {latest}\">"
        );
        for tick in &ticks_y {
            let at = y(*tick);
            let _ = write!(
                svg,
                "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 3.5,
                short(*tick)
            );
        }
        for tick in ticks(x0, x1, 5).into_iter().filter(|t| (x0..=x1).contains(t)) {
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                x(tick),
                HEIGHT - 9.0,
                short(tick)
            );
        }
        let _ =
            write!(svg, "<path class=\"axis\" d=\"M{LEFT} {:.1}H{:.1}\"/>", HEIGHT - BOTTOM, WIDTH - RIGHT);
        if buckets.len() < self.series.len() {
            let upper = buckets.iter().map(|b| (x(b.x), y(b.high)));
            let lower = buckets.iter().rev().map(|b| (x(b.x), y(b.low)));
            let _ = write!(svg, "<path class=\"band\" d=\"{}Z\"/>", path(upper.chain(lower)));
        }
        let curve = buckets.iter().map(|b| (x(b.x), y(b.mean)));
        if buckets.len() == 1 {
            let _ = write!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"var(--accent)\"/>",
                x(first.x),
                y(first.mean)
            );
        } else {
            let _ = write!(svg, "<path class=\"curve\" d=\"{}\"/>", path(curve));
        }
        svg.push_str("</svg></figure>");
        svg
    }
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut d = String::new();
    for (i, (x, y)) in points.enumerate() {
        let _ = write!(d, "{}{x:.1} {y:.1}", if i == 0 { 'M' } else { 'L' });
    }
    d
}

/// At most [`POINTS`] buckets of equally many points.
fn buckets(series: &[(f64, f64)]) -> Vec<Bucket> {
    let size = series.len().div_ceil(POINTS).max(1);
    let one = |points: &[(f64, f64)]| {
        let n = points.len() as f64;
        Bucket {
            x: points.iter().map(|p| p.0).sum::<f64>() / n,
            mean: points.iter().map(|p| p.1).sum::<f64>() / n,
            low: points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min),
            high: points.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max),
        }
    };
    series.chunks(size).map(one).collect()
}

/// Round numbers around `low..=high`, about `count` of them.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let range = high - low;
    if !range.is_finite() || range <= 0.0 {
        return vec![low];
    }
    let raw = range / count as f64;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= raw).unwrap_or(raw);
    // Half a step of slack, so that the ends of the curve lie inside.
    let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// The axis' ends.
fn span(ticks: &[f64], low: f64, high: f64) -> (f64, f64) {
    let bottom = ticks.first().copied().unwrap_or(low).min(low);
    let top = ticks.last().copied().unwrap_or(high).max(high);
    if top > bottom {
        (bottom, top)
    } else {
        let pad = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
        (low - pad, high + pad)
    }
}

/// A tick's text: no more digits than tell it from its neighbours.
fn short(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 {
        return "0".to_owned();
    }
    if !(1e-4..1e6).contains(&size) {
        return format!("{value:.0e}");
    }
    if size >= 10_000.0 {
        return format!("{}k", trimmed(value / 1000.0, 1));
    }
    trimmed(value, 4)
}

fn trimmed(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        assert_eq!(ticks(0.0, 4.0, 4), [0.0, 1.0, 2.0, 3.0, 4.0]);
        let t = ticks(0.13, 0.94, 4);
        assert!(t[0] <= 0.13 && *t.last().unwrap() >= 0.94 && t.len() <= 6, "{t:?}");
        assert_eq!(ticks(2.0, 2.0, 4), [2.0]);
        assert_eq!([0.996, 0.0, 12_500.0, 0.25, 3e-7].map(short), ["0.996", "0", "12.5k", "0.25", "3e-7"]);
    }

    #[test]
    fn long_series_are_averaged_and_odd_ones_do_not_break_it() {
        let long: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i) / 100.0, f64::from(i % 17))).collect();
        let svg = Chart { title: "a <b>", series: &long, include: Some(0.0) }.render();
        assert!(svg.len() < 16_000, "{}", svg.len());
        assert!(svg.contains("a &lt;b&gt;") && svg.contains("class=\"band\""));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        for series in [vec![(0.0, 1.0)], vec![(1.0, 2.0), (2.0, 2.0)], vec![(0.0, 0.0), (0.0, 0.0)]] {
            let svg = Chart { title: "t", series: &series, include: None }.render();
            assert!(svg.contains("</svg>") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        assert_eq!(Chart { title: "t", series: &[], include: None }.render(), "");
    }
}
