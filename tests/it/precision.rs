//! Precision and tuning: which of a float encoder and its int8 sibling serves, and what was measured at start.

use latentd::backend::DeviceChoice;
use latentd::precision::{Precision, PrecisionError, choose};
use latentd_model::{Artefact, Contract};

use crate::support::{Server, copy_dir, crops, model_dir};

/// A models folder with a copy of the served encoder and, where it is asked for, its int8 sibling.
fn models(with_sibling: bool) -> (tempfile::TempDir, Artefact) {
    let dir = tempfile::tempdir().unwrap();
    let from = model_dir();
    let to = dir.path().join(from.file_name().unwrap());
    copy_dir(&from, &to);
    let float = Artefact::open(&to).unwrap();
    if with_sibling {
        let pictures = tempfile::tempdir().unwrap();
        let paths = crops(pictures.path());
        latentd_model::runtime::init(None).unwrap();
        let made = latentd_model::quantise::quantise(&float, &paths, 0.5, &|_| ()).unwrap();
        latentd_model::quantise::write(&float, &made, dir.path(), "a test").unwrap();
    }
    (dir, float)
}

#[test]
fn without_a_sibling_int8_is_refused_and_auto_is_float() {
    let (_dir, float) = models(false);
    let refused = choose(Precision::Int8, float.clone(), &[], DeviceChoice::Cpu).unwrap_err();
    assert!(matches!(refused, PrecisionError::Missing { .. }), "{refused}");
    assert!(refused.to_string().contains("latentd model quantize"), "{refused}");
    let (taken, report) = choose(Precision::Auto, float.clone(), &[], DeviceChoice::Cpu).unwrap();
    assert_eq!((taken.contract(), report.used), (float.contract(), "f32"));
}

#[test]
fn the_vectors_of_the_store_decide_before_speed() {
    let (dir, float) = models(true);
    let name = float.manifest().full_name().replace("-v", "-int8-v");
    let int8 = Artefact::open(&dir.path().join(&name)).unwrap();
    let (of_float, of_int8) = (float.contract(), int8.contract());
    let take =
        |precision, contracts: &[Contract], device| choose(precision, float.clone(), contracts, device);
    let used = |precision, contracts: &[Contract], device| {
        let (taken, report) = take(precision, contracts, device).unwrap();
        assert_eq!(report.used == "int8", taken.contract() == of_int8, "{report:?}");
        (report.used, report.reason)
    };
    let cpu = DeviceChoice::Cpu;
    assert_eq!(used(Precision::F32, &[], cpu).0, "f32");
    assert_eq!(used(Precision::Int8, &[], cpu).0, "int8");
    assert_eq!(used(Precision::Auto, &[of_float], cpu).0, "f32");
    assert_eq!(used(Precision::Auto, &[of_float, of_int8], cpu).0, "int8");
    assert_eq!(used(Precision::Auto, &[of_int8], cpu).0, "int8");
    assert_eq!(used(Precision::Auto, &[], DeviceChoice::Cuda(0)).0, "f32");
    let (_, reason) = used(Precision::Auto, &[], cpu);
    assert!(reason.contains("times as many pictures per second"), "{reason}");
    let refused = take(Precision::Int8, &[of_float], cpu).unwrap_err();
    assert!(matches!(refused, PrecisionError::Index { .. }), "{refused}");
    // A sibling of another encoder than the one beside it.
    let manifest = dir.path().join(&name).join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace(&of_float.to_string(), "0123456789abcdef")).unwrap();
    let refused = take(Precision::Int8, &[], cpu).unwrap_err();
    assert!(matches!(refused, PrecisionError::NotGated { .. }), "{refused}");
    assert_eq!(used(Precision::Auto, &[], cpu).0, "f32");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_tells_what_it_measured_and_settings_fix_it() {
    let server = Server::start().await;
    let tuning = server.get_json("/info").await["tuning"].clone();
    let batches = tuning["measured"]["batches"].as_array().unwrap();
    let of = |rate: &serde_json::Value| rate["of"].as_u64().unwrap();
    assert!(batches.iter().all(|rate| rate["images_per_s"].as_f64().unwrap() > 0.0), "{tuning}");
    assert!(batches.iter().any(|rate| of(rate) == tuning["max_batch"].as_u64().unwrap()), "{tuning}");
    assert!((1..=tuning["cores"].as_u64().unwrap()).contains(&tuning["sessions"].as_u64().unwrap()));
    assert_eq!(tuning["precision"]["used"], "f32");
    // On one core there is nothing to try.
    let solo = tuning["measured"]["solo"].as_array().unwrap();
    assert_eq!(solo.len(), if tuning["cores"] == 1 { 0 } else { 2 }, "{tuning}");
    assert!(!tuning["solo_session"].as_bool().unwrap() || solo.len() == 2, "{tuning}");
    server.stop().await;

    let fixed = |config: &mut latentd::config::Config| {
        config.sessions = 3;
        config.max_batch = 5;
        config.solo_session = false;
    };
    let server = Server::with(fixed).await;
    let tuning = server.get_json("/info").await["tuning"].clone();
    assert_eq!((tuning["sessions"].as_u64(), tuning["max_batch"].as_u64()), (Some(3), Some(5)));
    assert_eq!(tuning["solo_session"], false);
    assert_eq!(tuning["measured"]["took_ms"], 0.0);
    server.stop().await;
}
