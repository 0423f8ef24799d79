//! `refresh`: the next version when it is better, nothing otherwise; killed, locked, repeated.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use latentd_model::Artefact;

use crate::support::{SMALL, succeed, trainer, write_pictures};

/// A folder with an encoder that hardly learnt anything, and pictures to go on with.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        write_pictures(&place.path("old"), 70, 1);
        write_pictures(&place.path("new"), 80, 2);
        write_pictures(&place.path("labelled/train"), 40, 3);
        write_pictures(&place.path("labelled/test"), 40, 4);
        let run = place.path("run");
        let mut train = trainer();
        train.arg("train").arg(place.path("old")).arg("--out").arg(&run).args(SMALL);
        succeed(train.args(["--epochs", "1", "--base-learning-rate", "0.01"]));
        let mut export = trainer();
        export.arg("export").arg(&run).args(["--name", "stripes", "--licence", "CC0-1.0", "--models"]);
        succeed(export.arg(place.path("models")).args(["--grid", "2", "--dims", "48"]));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn refresh(&self, more: &[&str]) -> Command {
        let mut command = trainer();
        command.arg("refresh").arg("--artefact").arg(self.path("models/stripes"));
        command.arg("--pictures").arg(self.path("new")).arg("--out").arg(self.path("models"));
        command.args(["--batch", "16"]).args(more);
        command
    }

    fn versions(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("models")).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|n| !n.starts_with('.'));
        names.sort();
        names
    }

    /// What is left in the work folder.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("models/.refresh-stripes")).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn code(output: &Output) -> (Option<i32>, String) {
    let said = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_better_encoder_becomes_the_next_version_and_another_one_changes_nothing() {
    let place = Place::new();
    let labelled = place.path("labelled");
    let labelled = labelled.to_str().unwrap();
    let (status, said) = code(&place.refresh(&["--epochs", "12", "--labelled", labelled]).output().unwrap());
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(place.versions(), ["stripes-v1", "stripes-v2"]);
    assert_eq!(place.left(), ["last.json", "lock"]);
    for part in
        ["view retrieval", "overlap of 10 nearest neighbours", "stripes-v2: it is better: kNN on labelled"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    let artefact = Artefact::open(&place.path("models/stripes-v2")).unwrap();
    let manifest = artefact.manifest();
    assert_eq!((manifest.licence.as_str(), manifest.version), ("CC0-1.0", 2));
    let training = manifest.training.as_ref().unwrap();
    let readout = (manifest.output.dim, training.grid, training.whitened);
    assert_eq!(readout, (48, 2, Some(true)), "read out as the version before");
    assert!(manifest.evaluation.iter().any(|f| f.metric == "knn_top1" && f.subject == "stripes-v1"));

    // The same pictures again: nothing is trained.
    let (status, said) = code(&place.refresh(&["--epochs", "12"]).output().unwrap());
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("nothing new: these pictures were tried"), "{said}");

    // An encoder that is not good enough leaves no trace but a line.
    let (status, said) =
        code(&place.refresh(&["--epochs", "1", "--force", "--min-overlap", "1"]).output().unwrap());
    assert_eq!(status, Some(3), "{said}");
    let error: Vec<&str> = said.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(error.len(), 1, "{said}");
    assert!(error[0].starts_with("error: no new version: it changes too many neighbours"), "{said}");
    assert_eq!(place.versions(), ["stripes-v1", "stripes-v2"]);
    assert_eq!(place.left(), ["last.json", "lock"]);
}

fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let began = Instant::now();
    while !there() {
        assert!(began.elapsed() < Duration::from_secs(300), "no {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn steps(run: &Path) -> usize {
    let checkpoints = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    checkpoints.filter(|e| e.file_name().to_string_lossy().starts_with("step-")).count()
}

#[test]
fn a_killed_refresh_goes_on_and_two_do_not_collide() {
    let place = Place::new();
    let args = ["--epochs", "30", "--checkpoint-minutes", "0", "--accept", "not-worse"];
    let mut first = place.refresh(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let run = place.path("models/.refresh-stripes/run");
    wait_for("checkpoints", || steps(&run) >= 3);
    let (status, said) = code(&place.refresh(&args).output().unwrap());
    assert_eq!(status, Some(4), "{said}");
    assert!(said.contains("another refresh is at work"), "{said}");
    first.kill().unwrap();
    first.wait().unwrap();
    let (status, said) = code(&place.refresh(&args).output().unwrap());
    assert!(said.contains("going on with the refresh that was interrupted"), "{said}");
    assert!(matches!(status, Some(0 | 3)), "{said}");
    assert_eq!(place.left(), ["last.json", "lock"]);
}

#[test]
fn a_server_that_cannot_be_reached_is_told_again_next_time() {
    let place = Place::new();
    let key = place.path("key");
    fs::write(&key, "a-key\n").unwrap();
    // Port 9 (discard) of this machine: nobody listens.
    let args =
        ["--epochs", "2", "--accept", "not-worse", "--activate", "http://127.0.0.1:9", "--admin-key-file"];
    let with_key = |args: &[&str]| code(&place.refresh(args).arg(&key).output().unwrap());
    let (status, said) = with_key(&args);
    if status == Some(3) {
        // Two epochs made it clearly worse: then there is nothing to activate.
        assert_eq!(place.versions(), ["stripes-v1"]);
        return;
    }
    assert_eq!(status, Some(5), "{said}");
    assert!(said.contains("stripes-v2 is written, but http://127.0.0.1:9 does not use it"), "{said}");
    let (status, said) = with_key(&args);
    assert_eq!(status, Some(5), "{said}");
    assert!(said.contains("nothing new"), "{said}");
    assert_eq!(place.versions(), ["stripes-v1", "stripes-v2"]);
}

/// The server beside the trainer, where it was built: `cargo test --workspace` does.
fn server() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_BIN_EXE_latentd-trainer")).with_file_name("latentd");
    let help = Command::new(&path).args(["serve", "--help"]).output().ok()?;
    String::from_utf8_lossy(&help.stdout).contains("--admin-key-file").then_some(path)
}

/// Ends the server with the test, however that ends.
struct Served(std::process::Child);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_running_server_changes_over() {
    let Some(server) = server() else {
        println!("skipped: no latentd with --admin-key-file beside the trainer; cargo build --release first");
        return;
    };
    let place = Place::new();
    let key = place.path("key");
    fs::write(&key, "a-long-enough-admin-key-for-a-test\n").unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut serve = Command::new(server);
    serve.arg("serve").arg("--listen").arg(free.to_string()).arg("--admin-key-file").arg(&key);
    serve.arg("--models-dir").arg(place.path("models")).arg("--model").arg(place.path("models/stripes-v1"));
    serve.arg("--data-dir").arg(place.path("data")).stdout(Stdio::null()).stderr(Stdio::null());
    let mut served = Served(serve.spawn().unwrap());
    let url = format!("http://{free}");
    let status = |path: &str| ureq::get(format!("{url}{path}")).call().map(|r| r.status().as_u16()).ok();
    wait_for("server", || {
        assert!(served.0.try_wait().unwrap().is_none(), "the server ended");
        status("/readyz") == Some(200)
    });
    for i in 0..5 {
        let picture = fs::read(place.path("old").join(format!("along/{i}.png"))).unwrap();
        let item = format!("{url}/items/{i}");
        ureq::put(item).header("content-type", "image/png").send(&picture[..]).unwrap();
    }
    let args = [
        "--epochs",
        "12",
        "--accept",
        "not-worse",
        "--activate",
        &url,
        "--admin-key-file",
        key.to_str().unwrap(),
    ];
    let (exit, said) = code(&place.refresh(&args).output().unwrap());
    assert_eq!(exit, Some(0), "{said}");
    assert!(said.contains("uses stripes-v2: 5 items embedded again"), "{said}");
    let info = ureq::get(format!("{url}/info")).call().unwrap().body_mut().read_to_string().unwrap();
    assert!(info.contains("stripes-v2"), "{info}");
}

#[test]
fn wrong_usage_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    write_pictures(&dir.path().join("p"), 3, 1);
    let say =
        |args: &[&str]| code(&trainer().current_dir(dir.path()).arg("refresh").args(args).output().unwrap());
    assert!(say(&["--pictures", "p"]).1.contains("--artefact"));
    let (status, said) = say(&["--artefact", "models/x", "--pictures", "p"]);
    assert!(status == Some(1) && said.contains("no version x-v<N> beside it"), "{said}");
    let (status, said) = say(&["--artefact", "x", "--pictures", "p", "--min-overlap", "2"]);
    assert!(status == Some(1) && said.contains("--min-overlap 2 is outside"), "{said}");
    fs::write(dir.path().join("key"), "\n").unwrap();
    let server = ["--artefact", "x", "--pictures", "p", "--admin-key-file", "key", "--activate"];
    assert!(say(&[&server[..], &["http://h:1"]].concat()).1.contains("holds no key"));
    fs::write(dir.path().join("key"), "k").unwrap();
    assert!(say(&[&server[..], &["https://h:1"]].concat()).1.contains("http://HOST:PORT"));
}
