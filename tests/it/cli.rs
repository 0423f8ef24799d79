//! The command line: the real binary.

use crate::support::program::{Log, Program, latentd};
use crate::support::{Server, example, examples};

#[tokio::test]
async fn embed_writes_rows_in_order_and_a_line_for_each_picture() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("broken.jpg"), b"no picture").unwrap();
    let (npy, lines) = (dir.path().join("v.npy"), dir.path().join("v.jsonl"));
    let run = latentd().args(["embed", "examples"]).arg(dir.path()).arg("--out").arg(&npy).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let server = Server::start().await;
    let bytes = std::fs::read(&npy).unwrap();
    let count = examples().len();
    let dim = (bytes.len() - 128) / 4 / count;
    assert!(String::from_utf8_lossy(&bytes[..128]).contains(&format!("'shape': ({count}, {dim})")));
    let text = std::fs::read_to_string(lines).unwrap();
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), count + 1);
    for (index, (name, picture)) in examples().into_iter().enumerate() {
        assert_eq!(rows[index]["path"], format!("examples/{name}.jpg"));
        assert_eq!(rows[index]["row"], index);
        let row = &bytes[128 + 4 * dim * index..][..4 * dim];
        let row: Vec<_> =
            row.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
        assert!(crate::support::cosine(&row, &server.embed(&picture).await) > 0.999_99);
    }
    assert_eq!(rows[count]["error"]["code"], "unsupported_format");
    server.stop().await;
}

#[tokio::test]
async fn without_a_command_it_serves_and_ends_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let (program, log) = Program::logging(dir.path(), |_| {});
    let (url, address) = (program.url.clone(), program.address().to_owned());
    let health = latentd().args(["healthcheck", "--listen", &address]).output().unwrap();
    assert!(health.status.success());
    let client = reqwest::Client::new();
    let request =
        client.post(format!("{url}/embed")).header("content-type", "image/jpeg").body(example("hat-1"));
    assert_eq!(request.send().await.unwrap().status(), 200);
    let ended = program.terminate();
    assert!(ended.success(), "{:#?}", log.collect::<Vec<_>>());
    let health = latentd().args(["healthcheck", "--listen", &address]).output().unwrap();
    assert!(!health.status.success());
}

#[test]
fn errors_say_what_to_do() {
    let failing = |args: &[&str]| {
        let run = latentd().args(args).output().unwrap();
        assert!(!run.status.success(), "{args:?}");
        String::from_utf8(run.stderr).unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("latentd.toml");
    std::fs::write(&config, "max_bach = 3\n").unwrap();
    let text = failing(&["serve", "--config", config.to_str().unwrap()]);
    assert!(text.contains("max_bach") && text.contains("latentd.toml"), "{text}");
    let text = failing(&["--model", "/nowhere"]);
    assert!(text.contains("/nowhere"), "{text}");
    let text = failing(&["--device", "gpu"]);
    assert!(text.contains("auto, cpu, cuda"), "{text}");
    let text = failing(&["embed", "/nowhere", "--out", "/tmp/x.npy"]);
    assert!(text.contains("/nowhere"), "{text}");
    let text = failing(&["--max-images", "5000"]);
    assert!(text.contains("queue_images"), "{text}");
}

#[test]
fn models_are_listed_and_verified() {
    let listed = latentd().args(["model", "verify"]).output().unwrap();
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    assert!(text.contains("are sound") && text.contains("golden pictures pass"), "{text}");
}

#[test]
fn encoders_are_compared_by_their_neighbours() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.html");
    let name = crate::support::model_dir();
    let name = name.to_str().unwrap();
    let run = latentd()
        .args(["model", "compare", name, name, "--images", "examples", "-k", "2", "--json", "--html"])
        .arg(&page)
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let found: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(found["mean_overlap"], 1.0, "{found}");
    assert_eq!(found["pictures"], examples().len());
    assert_eq!(found["most_changed"][0]["before"].as_array().unwrap().len(), 2);
    assert!(std::fs::read_to_string(page).unwrap().contains("data:image/jpeg"));
    let failing = |args: &[&str]| {
        let run = latentd().args(["model", "compare"]).args(args).output().unwrap();
        assert!(!run.status.success(), "{args:?}");
        String::from_utf8(run.stderr).unwrap()
    };
    let text = failing(&[name, "nobody-v1", "--images", "examples"]);
    assert!(text.contains("nobody-v1"), "{text}");
    let text = failing(&[name, name, "--images", "examples", "-k", "500"]);
    assert!(text.contains("at least 502"), "{text}");
}

#[tokio::test]
async fn an_int8_sibling_is_written_only_when_neighbours_stay() {
    let dir = tempfile::tempdir().unwrap();
    crate::support::crops(dir.path());
    let out = dir.path().join("models");
    let quantize = |bound: &str| {
        latentd()
            .args(["model", "quantize"])
            .arg(crate::support::model_dir())
            .arg("--images")
            .arg(dir.path())
            .args(["--min-overlap", bound, "--out"])
            .arg(&out)
            .output()
            .unwrap()
    };
    let refused = quantize("1");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && !out.exists(), "{text}");
    assert!(text.trim_end().lines().last().unwrap().contains("below the bound of 1"), "{text}");
    let made = quantize("0.5");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let folder = std::fs::read_dir(&out).unwrap().next().unwrap().unwrap().path();
    assert!(folder.file_name().unwrap().to_str().unwrap().contains("-int8-v"), "{folder:?}");
    let int8 = Server::with(|config| config.model = folder.clone()).await;
    let float = Server::start().await;
    let contract = |server: &Server| server.app.embedder().artefact().contract();
    assert_ne!(contract(&int8), contract(&float));
    for (name, picture) in examples() {
        let cosine = crate::support::cosine(&int8.embed(&picture).await, &float.embed(&picture).await);
        assert!(cosine > 0.9, "{name}: {cosine}");
    }
    int8.stop().await;
    float.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_is_written_and_drift_is_told_by_it() {
    let dir = tempfile::tempdir().unwrap();
    let (out, alike, others) =
        (dir.path().join("models"), dir.path().join("alike"), dir.path().join("others"));
    // Stripes of every width and colour; the others lie across.
    let write = |folder: &std::path::Path, across: bool, count: u32| {
        std::fs::create_dir(folder).unwrap();
        for n in 0..count {
            let pixel = |x: u32, y: u32| {
                let at = if across { y } else { x };
                let on = (at + n % 7) / (1 + n % 5) % 2 == 0;
                let byte = |k: u32| if on { (n * k % 251) as u8 } else { (n * k % 83) as u8 };
                image::Rgb([byte(31), byte(57), byte(101)])
            };
            image::RgbImage::from_fn(32, 32, pixel).save(folder.join(format!("{n:04}.png"))).unwrap();
        }
    };
    write(&alike, false, 700);
    write(&others, true, 200);
    let run = |words: &[&std::ffi::OsStr]| {
        let run = latentd().arg("model").args(words).output().unwrap();
        let text = String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned();
        (run.status.success(), text)
    };
    let (model, images, to) = (crate::support::model_dir(), "--images".as_ref(), "--out".as_ref());
    let (made, text) =
        run(&["reference".as_ref(), model.as_ref(), images, others.as_ref(), to, out.as_ref()]);
    assert!(!made && text.contains("at least 640 pictures"), "{text}");
    let (made, text) = run(&["reference".as_ref(), model.as_ref(), images, alike.as_ref(), to, out.as_ref()]);
    assert!(made && text.contains("560 pictures; 140 held out"), "{text}");
    let folder = std::fs::read_dir(&out).unwrap().next().unwrap().unwrap().path();
    let drift = |images_in: &std::path::Path| -> f64 {
        let (told, text) = run(&["drift".as_ref(), folder.as_ref(), images, images_in.as_ref()]);
        assert!(told, "{text}");
        text.split(" times").next().unwrap().rsplit(' ').next().unwrap().parse().unwrap()
    };
    let (same, other) = (drift(&alike), drift(&others));
    assert!((0.8..1.2).contains(&same) && other > 2.0, "{same} {other}");

    let server = Server::with(|config| config.model = folder.clone()).await;
    let info = server.get_json("/info").await;
    assert_eq!(info["model"]["reference"]["window"], 70, "{info}");
    let pictures =
        std::fs::read_dir(&others).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    assert_eq!(server.post_form("/embed", pictures.take(100).collect()).await.status(), 200);
    server.app.embedder().measure_health().await;
    let text = server.client.get(server.at("/metrics")).send().await.unwrap().text().await.unwrap();
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let ratio = value("latentd_embedding_distance") / value("latentd_embedding_distance_reference");
    assert!(ratio > 2.0, "{ratio}");
    server.stop().await;
}

/// Serves with much of a log, which is the caller's to read or not.
fn talkative(data: &std::path::Path) -> (Program, Log) {
    Program::logging(data, |command| {
        command.args(["--log", "debug"]);
    })
}

async fn answers_and_ends(program: Program, requests: usize) {
    let client = reqwest::Client::builder().timeout(std::time::Duration::from_secs(20)).build().unwrap();
    // The path is logged, so that a pipe of 64 KiB is full before long.
    let path = format!("{}/{}", program.url, "x".repeat(150));
    for _ in 0..requests {
        assert_eq!(client.get(&path).send().await.unwrap().status(), 404);
    }
    assert_eq!(client.get(format!("{}/livez", program.url)).send().await.unwrap().status(), 200);
    let ended = tokio::task::spawn_blocking(|| program.terminate());
    let ended = tokio::time::timeout(std::time::Duration::from_secs(30), ended).await;
    assert!(ended.expect("it did not end").unwrap().success());
}

#[tokio::test]
async fn a_log_whose_reader_is_gone_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (program, log) = talkative(dir.path());
    drop(log);
    answers_and_ends(program, 5).await;
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (program, log) = talkative(dir.path());
    answers_and_ends(program, 1000).await;
    drop(log);
}
