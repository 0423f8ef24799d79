//! `doctor` on folders with everything that goes wrong in folders.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{fail, succeed, trainer, write_pictures};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

fn doctor(dir: &Path, more: &[&str]) -> Value {
    let output = succeed(trainer().arg("doctor").arg(dir).args(more).arg("--json"));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn finding<'v>(checkup: &'v Value, code: &str) -> &'v Value {
    let all = checkup["findings"].as_array().unwrap();
    all.iter().find(|f| f["code"] == code).unwrap_or_else(|| panic!("no {code} in {all:?}"))
}

/// Real photographs with copies, a cut-off file, a text that is none, an archive and an iPhone picture.
fn messy(dir: &Path) {
    for name in ["dress-1", "hat-1", "hat-2", "outwear-1", "pants-1", "shoes-1", "shoes-2", "skirt-1"] {
        fs::copy(format!("{EXAMPLES}/{name}.jpg"), dir.join(format!("{name}.jpg"))).unwrap();
    }
    fs::copy(format!("{EXAMPLES}/hat-1.jpg"), dir.join("hat-1 (copy).jpg")).unwrap();
    let photo = |name: &str| image::open(format!("{EXAMPLES}/{name}.jpg")).unwrap().to_rgb8();
    let small = image::imageops::thumbnail(&photo("dress-1"), 150, 200);
    let file = fs::File::create(dir.join("dress-small.jpg")).unwrap();
    image::codecs::jpeg::JpegEncoder::new_with_quality(file, 40).encode_image(&small).unwrap();
    image::imageops::rotate90(&photo("shoes-1")).save(dir.join("shoes-turned.png")).unwrap();
    let whole = fs::read(format!("{EXAMPLES}/pants-1.jpg")).unwrap();
    fs::write(dir.join("cut.jpg"), &whole[..whole.len() * 2 / 3]).unwrap();
    fs::write(dir.join("letter.jpg"), "Dear Sir or Madam").unwrap();
    fs::write(dir.join("IMG_0001.HEIC"), [0; 40]).unwrap();
    fs::write(dir.join("more.zip"), [1; 40]).unwrap();
    image::RgbImage::from_pixel(600, 12, image::Rgb([200; 3])).save(dir.join("line.png")).unwrap();
}

#[test]
fn a_messy_folder_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    messy(dir.path());
    let checkup = doctor(dir.path(), &[]);
    assert_eq!((checkup["pictures"].as_u64(), checkup["unreadable"].as_u64()), (Some(12), Some(2)));
    assert_eq!(checkup["verdict"], "problems_first");
    assert_eq!(finding(&checkup, "pictures")["level"], "problem");
    assert_eq!(finding(&checkup, "exact_duplicates")["count"], 1);
    let near = finding(&checkup, "near_duplicates");
    assert_eq!(near["count"], 2);
    assert!(near["examples"].to_string().contains("shoes-1.jpg ~ shoes-turned.png"), "{near}");
    for (code, count) in
        [("unreadable", 2), ("other_files", 2), ("tiny", 1), ("extreme_aspect", 1), ("blank", 1)]
    {
        assert_eq!(finding(&checkup, code)["count"], count, "{code}");
    }
    assert!(finding(&checkup, "unreadable")["examples"].to_string().contains("ends before its end marker"));
    assert!(finding(&checkup, "other_files")["advice"].to_string().contains("HEIC"));
    assert_eq!(checkup["layout"]["kind"], "flat");
    assert!(checkup["suggestion"]["command"].as_str().unwrap().starts_with("latentd-trainer train "));
}

#[test]
fn pictures_of_the_test_folder_are_found_and_listed() {
    let dir = tempfile::tempdir().unwrap();
    let (train, test) = (dir.path().join("train"), dir.path().join("test"));
    fs::create_dir_all(&train).unwrap();
    fs::create_dir_all(&test).unwrap();
    messy(&train);
    fs::copy(format!("{EXAMPLES}/skirt-1.jpg"), test.join("a.jpg")).unwrap();
    let hat = image::open(format!("{EXAMPLES}/hat-2.jpg")).unwrap();
    hat.fliph().resize(200, 200, image::imageops::FilterType::Triangle).save(test.join("b.png")).unwrap();
    fs::copy(format!("{EXAMPLES}/t-shirt-1.jpg"), test.join("c.jpg")).unwrap();
    let list = dir.path().join("list.tsv");
    let checkup = doctor(&train, &["--against", test.to_str().unwrap(), "--list", list.to_str().unwrap()]);
    let against = &checkup["against"];
    assert_eq!((against["exact"].as_u64(), against["near"].as_u64()), (Some(1), Some(1)), "{against}");
    assert_eq!(finding(&checkup, "leakage")["level"], "problem");
    let list = fs::read_to_string(&list).unwrap();
    assert!(list.contains("leakage\t1\ta.jpg\tequal bytes: skirt-1.jpg\n"), "{list}");
    assert!(list.contains("leakage\t2\tb.png\tmirrored: hat-2.jpg\n"), "{list}");
    assert!(list.contains("exact_duplicates\t1\t") && list.contains("unreadable\t0\tcut.jpg\t"), "{list}");

    let text = succeed(trainer().arg("doctor").arg(&train).arg("--against").arg(&test));
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("Verdict: problems first") && text.contains("✘"), "{text}");
    assert!(text.lines().all(|l| l.chars().count() <= 200), "{text}");
    // The folder above both is no folder to train on.
    assert!(finding(&doctor(dir.path(), &[]), "parts")["advice"].to_string().contains("train"));
}

#[test]
fn a_folder_of_classes_and_folders_of_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write_pictures(&dir.path().join("p"), 60, 5);
    let checkup = doctor(&dir.path().join("p"), &["--limit", "50"]);
    assert_eq!(checkup["layout"]["kind"], "classes");
    assert_eq!(checkup["listed"], 120);
    assert!(checkup["pictures"].as_u64().unwrap() <= 50);
    fs::create_dir(dir.path().join("empty")).unwrap();
    let say = |args: &[&str]| fail(trainer().current_dir(dir.path()).arg("doctor").args(args));
    assert!(say(&["empty"]).contains("no pictures found"));
    assert!(say(&["nowhere"]).contains("no such folder"));
    assert!(say(&["p", "--against", "nowhere"]).contains("no such folder"));
    assert!(say(&["p", "--limit", "0"]).contains("--limit must be at least 1"));
    assert!(say(&["p", "--list", "no/such/folder.tsv"]).contains("no/such/folder.tsv"));
}
