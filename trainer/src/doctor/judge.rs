//! From what was measured to findings with advice.

use std::collections::BTreeMap;
use std::path::Path;

use super::checkup::Concerned;
use super::facts::Facts;
use super::findings::{Finding, Level};
use super::layout::Layout;
use super::survey::Survey;
use super::text::{count, number_of, percent, shortened};
use super::twins::{Copies, Group, Leak};

/// Shorter side below which a picture shows too little.
const TINY: u32 = 32;
/// Longer side by shorter side above which a centre crop shows too little.
const EXTREME: f64 = 4.0;
/// Fewer pictures teach an encoder next to nothing.
const TOO_FEW: usize = 100;
/// Fewer pictures teach it little.
const FEW: usize = 1000;
/// Files that a finding names.
const EXAMPLES: usize = 5;
/// Pictures that cameras and tools write and that are not read.
const CONVERTIBLE: [&str; 14] =
    ["heic", "heif", "avif", "jp2", "jxl", "svg", "psd", "dng", "cr2", "cr3", "nef", "arw", "tga", "ico"];
/// Files that pictures may be packed in.
const PACKED: [&str; 9] = ["zip", "tar", "gz", "tgz", "7z", "parquet", "tfrecord", "mp4", "mov"];

/// What is judged.
pub(super) struct Evidence<'a> {
    pub(super) survey: &'a Survey,
    pub(super) copies: &'a Copies,
    pub(super) layout: &'a Layout,
    pub(super) other: Option<&'a Survey>,
    pub(super) leaks: Option<&'a [Leak]>,
}

/// All findings, and every file that one of them is about.
pub(super) fn findings(evidence: &Evidence<'_>) -> (Vec<Finding>, Vec<Concerned>) {
    let mut concerned = Vec::new();
    let mut all = vec![number(evidence.survey), unreadable(evidence.survey, &mut concerned)];
    all.extend(other_files(evidence.survey));
    all.extend(leakage(evidence, &mut concerned));
    all.push(exact(evidence, &mut concerned));
    all.push(near(evidence, &mut concerned));
    all.extend(odd(evidence.survey, &mut concerned));
    all.push(grey(evidence.survey));
    all.extend(layout(evidence.survey, evidence.layout));
    (all, concerned)
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

fn number(survey: &Survey) -> Finding {
    let n = survey.pictures.len();
    let level = match n {
        _ if n < TOO_FEW => Level::Problem,
        _ if n < FEW => Level::Warning,
        _ if survey.sampled() => Level::Note,
        _ => Level::Fine,
    };
    let text = if survey.sampled() {
        format!(
            "{} of {} picture files were looked at",
            count(n + survey.refused.len()),
            count(survey.listed)
        )
    } else {
        format!("{} can be trained on", number_of(n, "picture"))
    };
    let advice = if n < FEW {
        "a thousand pictures are a beginning, ten thousand are better; with fewer, an encoder trained on other \
         pictures of the kind serves you better than one of your own"
    } else {
        "shares below are of those, and copies are found only among them: leave --limit out to see all"
    };
    Finding::new("pictures", level, n, text).advice(advice)
}

fn unreadable(survey: &Survey, concerned: &mut Vec<Concerned>) -> Finding {
    let total = survey.pictures.len() + survey.refused.len();
    let n = survey.refused.len();
    if n == 0 {
        return Finding::new("unreadable", Level::Fine, 0, "every picture file can be read");
    }
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for (path, refusal) in &survey.refused {
        *reasons.entry(refusal.code).or_default() += 1;
        let (path, detail) = (name(path), refusal.reason.clone());
        concerned.push(Concerned { code: "unreadable", group: 0, path, detail });
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|r| std::cmp::Reverse(r.1));
    let reasons: Vec<String> =
        reasons.iter().map(|(code, n)| format!("{} {}", count(*n), words(code))).collect();
    let text = format!(
        "{} ({}) cannot be read: {}",
        number_of(n, "picture file"),
        percent(n, total),
        reasons.join(", ")
    );
    let one = |(path, refusal): &(std::path::PathBuf, super::facts::Refusal)| {
        format!("{}: {}", shortened(&name(path), 40), refusal.reason)
    };
    Finding::new("unreadable", Level::by_share(n, total, 0.005, 0.1), n, text)
        .advice("training passes them over; copy them again from where they came if they matter")
        .examples(survey.refused.iter().take(EXAMPLES).map(one))
}

fn words(code: &str) -> &str {
    match code {
        "corrupt_image" => "damaged or cut short",
        "unsupported_format" => "of a format that is not read",
        "too_many_pixels" => "with too many pixels",
        "image_too_large" => "too large",
        "empty_image" => "empty",
        _ => "that the system does not let be read",
    }
}

fn other_files(survey: &Survey) -> Option<Finding> {
    let n = survey.others.len();
    if n == 0 {
        return None;
    }
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for skipped in &survey.others {
        let extension = skipped.path.extension().map(|e| e.to_string_lossy().to_lowercase());
        *kinds.entry(extension.unwrap_or_default()).or_default() += 1;
    }
    let of = |known: &[&str]| {
        kinds.iter().filter(|(k, _)| known.contains(&k.as_str())).map(|k| k.1).sum::<usize>()
    };
    let (convertible, packed) = (of(&CONVERTIBLE), of(&PACKED));
    let share = convertible as f64 / (survey.listed + convertible) as f64;
    let level = if share > 0.02 { Level::Warning } else { Level::Note };
    let mut largest: Vec<_> = kinds.iter().collect();
    largest.sort_by_key(|k| std::cmp::Reverse(k.1));
    let shown = |(kind, n): &(&String, &usize)| {
        format!(
            "{} {}",
            count(**n),
            if kind.is_empty() { "without extension".into() } else { format!(".{kind}") }
        )
    };
    let kinds: Vec<String> = largest.iter().take(4).map(shown).collect();
    let text = format!("{} passed over: {}", number_of(n, "other file"), kinds.join(", "));
    let advice = match (convertible, packed) {
        (0, 0) => "nothing to do unless pictures are among them",
        (0, _) => "unpack archives, and take frames out of films, if you want those pictures too",
        _ => {
            "convert HEIC, AVIF, raw and the like to JPEG first (with ImageMagick: `magick mogrify -format jpg`)"
        }
    };
    let one = |s: &crate::data::Skipped| format!("{}: {}", s.path.display(), s.reason);
    Some(
        Finding::new("other_files", level, n, text)
            .advice(advice)
            .examples(survey.others.iter().take(3).map(one)),
    )
}

fn leakage(evidence: &Evidence<'_>, concerned: &mut Vec<Concerned>) -> Option<Finding> {
    let (other, leaks) = evidence.other.zip(evidence.leaks)?;
    let folder = other.root.display();
    if leaks.is_empty() {
        let text = format!("none of the {} pictures of {folder} is in it", count(other.pictures.len()));
        return Some(Finding::new("leakage", Level::Fine, 0, text));
    }
    let pair = |l: &Leak| {
        let (there, here) =
            (&other.pictures[l.there as usize].0, &evidence.survey.pictures[l.here as usize].0);
        let how = match l.near.map(super::fingerprint::Orientation::words) {
            None => "equal bytes",
            Some("") => "looks the same",
            Some(words) => words,
        };
        (name(there), name(here), how)
    };
    for (i, leak) in leaks.iter().enumerate() {
        let (path, here, how) = pair(leak);
        concerned.push(Concerned { code: "leakage", group: i + 1, path, detail: format!("{how}: {here}") });
    }
    let exact = leaks.iter().filter(|l| l.near.is_none()).count();
    let text = format!(
        "{} of the {} pictures of {folder} ({}) are in it too: {} with equal bytes, {} that look the same",
        count(leaks.len()),
        count(other.pictures.len()),
        percent(leaks.len(), other.pictures.len()),
        count(exact),
        count(leaks.len() - exact)
    );
    let one = |l: &Leak| {
        let (there, here, how) = pair(l);
        format!("{there} = {here} ({how})")
    };
    Some(
        Finding::new("leakage", Level::by_share(leaks.len(), other.pictures.len(), 0.001, 0.01), leaks.len(), text)
            .advice("take them out of one of the two folders (--list FILE names them all), or figures measured on the second flatter the encoder")
            .examples(leaks.iter().take(EXAMPLES).map(one)),
    )
}

fn exact(evidence: &Evidence<'_>, concerned: &mut Vec<Concerned>) -> Finding {
    let (survey, groups) = (evidence.survey, &evidence.copies.exact);
    let spare = Copies::spare(groups);
    if spare == 0 {
        return Finding::new("exact_duplicates", Level::Fine, 0, "no two files are equal");
    }
    list_groups(survey, groups, "exact_duplicates", concerned, &|_| "equal bytes".into());
    let text = format!(
        "{} ({}) repeating others byte by byte, in {}",
        number_of(spare, "file"),
        percent(spare, survey.pictures.len()),
        number_of(groups.len(), "group")
    );
    Finding::new("exact_duplicates", Level::by_share(spare, survey.pictures.len(), 0.02, 0.5), spare, text)
        .advice("keep one of each (--list FILE names them): copies weigh double and waste training time")
        .examples(groups.iter().take(EXAMPLES).map(|g| group_names(survey, g, " = ")))
}

fn near(evidence: &Evidence<'_>, concerned: &mut Vec<Concerned>) -> Finding {
    let (survey, copies) = (evidence.survey, evidence.copies);
    let groups = &copies.near;
    let spare = Copies::spare(groups);
    if spare == 0 {
        return Finding::new("near_duplicates", Level::Fine, 0, "no two pictures look the same");
    }
    let how = |i: u32| copies.turned.get(&i).map_or("looks the same", |o| o.words()).to_owned();
    list_groups(survey, groups, "near_duplicates", concerned, &how);
    let largest = groups.iter().map(Vec::len).max().unwrap_or(0);
    let text = format!(
        "{}{} ({}) looking like others (recompressed, scaled, mirrored or turned), in {}, the largest of {}",
        if copies.at_least { "at least " } else { "" },
        number_of(spare, "picture"),
        percent(spare, survey.pictures.len()),
        number_of(groups.len(), "group"),
        count(largest)
    );
    let mut by_size: Vec<&Group> = groups.iter().collect();
    by_size.sort_by_key(|g| std::cmp::Reverse(g.len()));
    Finding::new("near_duplicates", Level::by_share(spare, survey.pictures.len(), 0.05, 0.6), spare, text)
        .advice(
            "keep one of each unless they are meant (frames of a film, a series): BYOL learns that *views* of a picture \
             belong together, and copies only repeat that; they must not be divided between train and test",
        )
        .examples(by_size.into_iter().take(EXAMPLES).map(|g| group_names(survey, g, " ~ ")))
}

fn list_groups(
    survey: &Survey,
    groups: &[Group],
    code: &'static str,
    to: &mut Vec<Concerned>,
    detail: &dyn Fn(u32) -> String,
) {
    for (g, group) in groups.iter().enumerate() {
        for (i, &place) in group.iter().enumerate() {
            let path = name(&survey.pictures[place as usize].0);
            let detail = if i == 0 { "the first one".to_owned() } else { detail(place) };
            to.push(Concerned { code, group: g + 1, path, detail });
        }
    }
}

fn group_names(survey: &Survey, group: &Group, between: &str) -> String {
    let names: Vec<String> = group.iter().take(3).map(|&i| name(&survey.pictures[i as usize].0)).collect();
    let more = if group.len() > 3 { format!(" and {} more", group.len() - 3) } else { String::new() };
    names.join(between) + &more
}

/// Findings about single pictures.
fn odd(survey: &Survey, concerned: &mut Vec<Concerned>) -> Vec<Finding> {
    type Test = fn(&Facts) -> bool;
    let size = |f: &Facts| format!("{} × {}", f.width, f.height);
    let tests: [(&'static str, Test, f64, f64, &str, &str); 5] = [
        (
            "damaged",
            |f| f.damaged,
            0.005,
            0.2,
            "ending in flat grey, as a damaged JPEG does",
            "look at some: if their lower part is missing, copy them again or leave them out",
        ),
        (
            "blank",
            |f| f.blank,
            0.005,
            0.3,
            "of one colour and nothing else",
            "leave them out: they pull all vectors together",
        ),
        (
            "tiny",
            |f| f.shorter() < TINY,
            0.05,
            0.8,
            "with a side below 32 pixels",
            "they are magnified and stay blurred; leave thumbnails out if you have the originals",
        ),
        (
            "extreme_aspect",
            |f| f.aspect() > EXTREME,
            0.05,
            0.8,
            "more than four times as long as wide",
            "a crop shows little of them: cut them up, or leave them out",
        ),
        (
            "misnamed",
            |f| f.misnamed,
            1.0,
            1.0,
            "of another format than the name says",
            "nothing to do here, the content decides; other programs may trip over them",
        ),
    ];
    let mut found = Vec::new();
    for (code, test, note, warning, what, advice) in tests {
        let hits: Vec<_> = survey.pictures.iter().filter(|(_, f)| test(f)).collect();
        for (path, facts) in &hits {
            concerned.push(Concerned { code, group: 0, path: name(path), detail: size(facts) });
        }
        if hits.is_empty() {
            continue;
        }
        let text = format!(
            "{} ({}) {what}",
            number_of(hits.len(), "picture"),
            percent(hits.len(), survey.pictures.len())
        );
        let level = Level::by_share(hits.len(), survey.pictures.len(), note, warning);
        let one =
            |(path, facts): &&(std::path::PathBuf, Facts)| format!("{} ({})", path.display(), size(facts));
        found.push(
            Finding::new(code, level, hits.len(), text)
                .advice(advice)
                .examples(hits.iter().take(EXAMPLES).map(one)),
        );
    }
    found
}

fn grey(survey: &Survey) -> Finding {
    let (grey, n) = (survey.pictures.iter().filter(|(_, f)| f.grey).count(), survey.pictures.len());
    let share = grey as f64 / n.max(1) as f64;
    let (level, text) = match share {
        _ if grey == 0 => (Level::Fine, "every picture has colour".to_owned()),
        s if s > 0.98 => (Level::Note, "the pictures have no colour".to_owned()),
        s if s < 0.02 => {
            (Level::Fine, format!("{} ({}) without colour", number_of(grey, "picture"), percent(grey, n)))
        }
        _ => (Level::Note, format!("{} ({}) without colour", number_of(grey, "picture"), percent(grey, n))),
    };
    let advice = if share > 0.98 {
        "colour jitter has nothing to change then, so brightness, contrast, blur and crops must carry the training; \
         expect to need more epochs"
    } else {
        "whether a picture has colour may become what the encoder looks at first; see whether neighbours in the report \
         are sorted by it"
    };
    Finding::new("grey", level, grey, text).advice(advice)
}

fn layout(survey: &Survey, layout: &Layout) -> Vec<Finding> {
    let root = survey.root.display();
    match layout {
        Layout::Parts { parts } => {
            let names: Vec<String> = parts.iter().map(|(k, n)| format!("{k}/ {}", count(*n))).collect();
            let text =
                format!("the folder holds parts ({}), which training would not tell apart", names.join(", "));
            let own = if parts.contains_key("train") { "train" } else { "the part to train on" };
            vec![
                Finding::new("parts", Level::Warning, parts.len(), text)
                    .advice(format!("give {root}/{own}, so that pictures to test on stay unseen")),
            ]
        }
        Layout::Classes { classes, .. } => {
            let Some(((least, few), (most, many))) = layout.extremes() else { return Vec::new() };
            let balance = many as f64 / few.max(1) as f64;
            let text = format!(
                "{} class folders, from {} ({least}) to {} ({most}) pictures; training does not look at their names",
                count(classes.len()),
                count(few),
                count(many)
            );
            let level = if balance > 10.0 || few < 10 { Level::Note } else { Level::Fine };
            vec![Finding::new("classes", level, classes.len(), text).advice(
                "rare classes are learned less well, and figures on a handful of pictures say little: see the classes \
                 one by one in the report",
            )]
        }
        Layout::Flat | Layout::Nested { .. } => Vec::new(),
    }
}
