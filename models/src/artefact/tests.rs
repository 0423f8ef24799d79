//! Tests of reading and writing artefacts.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::embedding::Embedding;
use crate::golden::GoldenPicture;
use crate::preprocess::Filter;

fn draft() -> ArtefactDraft {
    ArtefactDraft {
        name: "byol-test".into(),
        version: 1,
        licence: "CC0-1.0".into(),
        description: "A test.".into(),
        preprocess: Preprocess::squash(4, 4, Filter::Bilinear),
        output: OutputSpec { dim: 2, normalised: true },
        training: None,
        evaluation: vec![],
        reference: None,
    }
}

fn golden() -> Golden {
    let expected = Embedding::from_unnormalised(vec![3.0, 4.0]).unwrap();
    Golden { pictures: vec![GoldenPicture { name: "0.png".into(), bytes: b"picture".to_vec(), expected }] }
}

fn write(models: &Path) -> Result<PathBuf, ArtefactError> {
    write_artefact(models, &draft(), b"graph", &golden(), "<p>report</p>")
}

#[test]
fn what_is_written_is_read() {
    let models = tempfile::tempdir().unwrap();
    let dir = write(&models.path().join("new")).unwrap();
    assert!(dir.ends_with("byol-test-v1"));
    let artefact = Artefact::open(&dir).unwrap();
    assert_eq!(artefact.golden().unwrap(), golden());
    assert_eq!(std::fs::read(artefact.model_path()).unwrap(), b"graph");
    let files: Vec<&str> = artefact.manifest().files.keys().map(String::as_str).collect();
    assert_eq!(files, ["REPORT.html", "golden/0.png", "golden/expected.json", "model.onnx"]);
    let names: Vec<_> =
        fs::read_dir(models.path().join("new")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["byol-test-v1"], "nothing is left beside it");
}

#[test]
fn the_contract_is_what_it_always_was() {
    // Vectors in users' stores carry it: a change here would orphan them. The digest is that of
    // {"model":"abc","output":{"dim":2,"normalised":true},"preprocess":{"background":[255,255,255],"filter":"bilinear","height":4,"policy":"squash","width":4}}
    let contract = compute_contract("abc", &draft().preprocess, &draft().output);
    assert_eq!(contract.to_string(), "8c28a02ec165b8c1");
    let mut other = draft();
    other.preprocess.filter = Filter::Bicubic;
    assert_ne!(compute_contract("abc", &other.preprocess, &draft().output), contract);
    assert_ne!(compute_contract("abd", &draft().preprocess, &draft().output), contract);
}

#[test]
fn an_artefact_is_never_overwritten() {
    let models = tempfile::tempdir().unwrap();
    write(models.path()).unwrap();
    assert!(matches!(write(models.path()), Err(ArtefactError::Exists { .. })));
    Artefact::open(&models.path().join("byol-test-v1")).unwrap();
}

#[test]
fn of_writers_at_the_same_time_one_wins() {
    let models = tempfile::tempdir().unwrap();
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8).map(|_| scope.spawn(|| write(models.path()))).collect();
        writers.into_iter().map(|w| w.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|o| o.is_ok()).count(), 1);
    assert!(outcomes.iter().all(|o| matches!(o, Ok(_) | Err(ArtefactError::Exists { .. }))));
    Artefact::open(&models.path().join("byol-test-v1")).unwrap();
    assert_eq!(fs::read_dir(models.path()).unwrap().count(), 1);
}

#[test]
fn any_changed_file_is_noticed() {
    for file in ["model.onnx", "REPORT.html", "golden/0.png", "golden/expected.json"] {
        let models = tempfile::tempdir().unwrap();
        let dir = write(models.path()).unwrap();
        let path = dir.join(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[0] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(matches!(Artefact::open(&dir), Err(ArtefactError::Hash { path: p, .. }) if p == path));
        fs::remove_file(&path).unwrap();
        assert!(matches!(Artefact::open(&dir), Err(ArtefactError::Io { path: p, .. }) if p == path));
    }
}

#[test]
fn a_changed_manifest_is_noticed() {
    let models = tempfile::tempdir().unwrap();
    let dir = write(models.path()).unwrap();
    let path = dir.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("bilinear", "bicubic")).unwrap();
    let error = Artefact::open(&dir).unwrap_err();
    assert!(matches!(error, ArtefactError::Contract { .. }), "{error}");
    fs::write(&path, text.replace("\"licence\"", "\"license\"")).unwrap();
    assert!(matches!(Artefact::open(&dir), Err(ArtefactError::Manifest { .. })));
    fs::write(&path, " ".repeat(5 << 20)).unwrap();
    assert!(matches!(Artefact::open(&dir), Err(ArtefactError::Manifest { .. })));
    assert!(matches!(Artefact::open(&models.path().join("absent")), Err(ArtefactError::Io { .. })));
}

#[test]
fn a_draft_out_of_bounds_writes_nothing() {
    let models = tempfile::tempdir().unwrap();
    let refused = |draft: ArtefactDraft| {
        let outcome = write_artefact(models.path(), &draft, b"graph", &golden(), "");
        matches!(outcome, Err(ArtefactError::Manifest { .. }))
    };
    assert!(refused(ArtefactDraft { name: "../up".into(), ..draft() }));
    assert!(refused(ArtefactDraft { version: 0, ..draft() }));
    assert!(refused(ArtefactDraft { output: OutputSpec { dim: 3, normalised: true }, ..draft() }));
    assert!(refused(ArtefactDraft { preprocess: Preprocess::squash(0, 4, Filter::Bilinear), ..draft() }));
    assert_eq!(fs::read_dir(models.path()).unwrap().count(), 0);
}

#[test]
fn further_files_are_listed_and_checked_and_leave_the_contract() {
    let models = tempfile::tempdir().unwrap();
    let plain = write(models.path()).unwrap();
    let mut next = draft();
    next.version += 1;
    let with = |name: &str| {
        write_artefact_with(models.path(), &next, b"graph", &golden(), "<p>report</p>", &[(name, b"weights")])
    };
    for name in ["model.onnx", "manifest.json", "a/b"] {
        assert!(with(name).unwrap_err().to_string().contains("cannot be added"), "{name}");
    }
    let dir = with("weights.safetensors").unwrap();
    let artefact = Artefact::open(&dir).unwrap();
    assert!(artefact.manifest().files.contains_key("weights.safetensors"));
    assert_eq!(artefact.contract(), Artefact::open(&plain).unwrap().contract());
    fs::write(dir.join("weights.safetensors"), b"other").unwrap();
    assert!(matches!(Artefact::open(&dir), Err(ArtefactError::Hash { .. })));
}

#[test]
fn a_successor_is_the_same_encoder_and_knows_its_reference() {
    let models = tempfile::tempdir().unwrap();
    let further: [(&str, &[u8]); 1] = [("weights.safetensors", b"weights")];
    let dir =
        write_artefact_with(models.path(), &draft(), b"graph", &golden(), "<p>report</p>", &further).unwrap();
    let first = Artefact::open(&dir).unwrap();
    assert_eq!((first.manifest().reference.clone(), first.reference().unwrap()), (None, None));
    // Points of a circle.
    let embeddings: Vec<f32> = (0..1000).map(|i| i as f32).flat_map(|a| [a.cos(), a.sin()]).collect();
    let measured = crate::reference::of_embeddings(&embeddings, 2, "a test").unwrap();
    assert_eq!(next_version(models.path(), "byol-test").unwrap(), 2);
    let dir = first.write_with_reference(models.path(), 2, measured.clone()).unwrap();
    let second = Artefact::open(&dir).unwrap();
    assert_eq!(second.reference().unwrap(), Some(measured.clone()));
    assert_eq!((second.contract(), second.golden().unwrap()), (first.contract(), golden()));
    let hashes = |artefact: &Artefact| {
        let mut files = artefact.manifest().files.clone();
        files.remove(crate::reference::REFERENCE_FILE);
        files
    };
    assert_eq!(hashes(&second), hashes(&first));
    // Measured again, the new figures take the place of the old.
    let third = second.write_with_reference(models.path(), 3, measured).unwrap();
    assert!(Artefact::open(&third).is_ok());
    let file = dir.join(crate::reference::REFERENCE_FILE);
    std::fs::write(&file, b"{}").unwrap();
    assert!(matches!(Artefact::open(&dir), Err(ArtefactError::Hash { .. })));
    assert!(matches!(second.reference(), Err(ArtefactError::Manifest { .. })));
}
