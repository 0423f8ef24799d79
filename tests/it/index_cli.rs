//! `latentd index` and `latentd search`: on a data folder, and through a running server.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::{Server, example, examples, root};

/// A copy of some examples, in folders, with names that are hard to send.
fn pictures(dir: &Path) {
    for (name, path) in
        [("hat-1", "hats/1.jpg"), ("hat-2", "hats/ключ \"é\".jpg"), ("shoes-1", "shoes/a b/%2F\\.jpg")]
    {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, example(name)).unwrap();
    }
    std::fs::write(dir.join("broken.jpg"), "no picture").unwrap();
    std::fs::write(dir.join("notes.txt"), "no picture").unwrap();
}

fn run(args: &[&str], paths: &[&Path]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_latentd"));
    command.args(args).args(paths).current_dir(root()).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn check(run: &Output, summary: &str) {
    let printed = text(&run.stderr);
    assert!(run.status.success() && printed.contains(summary), "{printed}");
}

const FIRST: &str = "3 indexed, 0 unchanged, 1 failed, 1 other files skipped";
const AGAIN: &str = "1 indexed, 2 unchanged, 1 failed, 1 other files skipped";

#[test]
fn a_folder_is_indexed_and_searched_on_a_data_folder() {
    let (dir, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    pictures(dir.path());
    let data = data.path().to_str().unwrap();
    let index = || run(&["index", "--data-dir", data], &[dir.path()]);
    let first = index();
    check(&first, FIRST);
    assert!(text(&first.stderr).contains("broken.jpg: "), "{}", text(&first.stderr));
    std::fs::write(dir.path().join("hats/1.jpg"), example("pants-1")).unwrap();
    check(&index(), AGAIN);
    let picture = root().join("examples/pants-1.jpg");
    let table = run(&["search", "--data-dir", data, "-k", "2"], &[&picture]);
    let table = text(&table.stdout);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!((lines.len(), lines[0].split_whitespace().last()), (2, Some("hats/1.jpg")), "{table}");
    let json = run(&["search", "--data-dir", data, "--json"], &[&picture]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["neighbours"].as_array().unwrap().len(), 3);
    let filtered = run(&["search", "--data-dir", data, "--filter", r#"{"a":{"$exists":true}}"#], &[&picture]);
    assert!(text(&filtered.stdout).starts_with("no neighbours"));
    // Nearer to the one than to the other; and each once is more different than two copies.
    let (hat, shoes) = (root().join("examples/hat-2.jpg"), root().join("examples/shoes-1.jpg"));
    let near = text(&run(&["search", "--data-dir", data, "-k", "2"], &[&hat, &shoes]).stdout);
    assert!(near.contains("hats/ключ") && near.contains("shoes/") && !near.contains("hats/1.jpg"), "{near}");
    let not = run(&["search", "--data-dir", data, "-k", "1", "--not", hat.to_str().unwrap()], &[&shoes]);
    assert!(text(&not.stdout).contains("shoes/"), "{}", text(&not.stderr));
    let same = run(&["search", "--data-dir", data, "--not", hat.to_str().unwrap()], &[&hat]);
    assert!(text(&same.stderr).contains("cancel each other out"), "{}", text(&same.stderr));
    let bounded = run(&["search", "--data-dir", data, "--min-score", "0.999", "--diversity", "0.5"], &[&hat]);
    assert_eq!(text(&bounded.stdout).lines().count(), 1, "{}", text(&bounded.stderr));
    std::fs::write(dir.path().join("shoes/copy.jpg"), example("pants-1")).unwrap();
    index();
    let copies = run(&["duplicates", "--data-dir", data, "--threshold", "0.9999", "--json"], &[]);
    let pair: Value = serde_json::from_slice(&copies.stdout).unwrap();
    assert_eq!((&pair["id"], &pair["other"]), (&"hats/1.jpg".into(), &"shoes/copy.jpg".into()));
    assert!(text(&copies.stderr).contains("1 pairs among 4 items"), "{}", text(&copies.stderr));
    let wrong = run(&["search", "--data-dir", data, "--filter", "{"], &[&picture]);
    assert!(!wrong.status.success() && text(&wrong.stderr).contains("the filter is not understood"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_indexed_and_searched_through_a_server() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    pictures(dir.path());
    let url = server.url.clone();
    let data = server.app.config.data_dir.clone();
    let dir_path = dir.path().to_owned();
    tokio::task::spawn_blocking(move || {
        let index = || run(&["index", "--url", &url, "--collection", "c"], &[&dir_path]);
        check(&index(), FIRST);
        std::fs::write(dir_path.join("hats/1.jpg"), example("pants-1")).unwrap();
        check(&index(), AGAIN);
        let picture = root().join("examples/hat-2.jpg");
        let table = run(&["search", "--url", &url, "--collection", "c", "-k", "1"], &[&picture]);
        assert!(
            text(&table.stdout).contains("hats/ключ \"é\".jpg"),
            "{} {}",
            text(&table.stdout),
            text(&table.stderr)
        );
        let not = root().join("examples/shoes-1.jpg");
        let apart = ["search", "--url", &url, "--collection", "c", "-k", "1", "--not", not.to_str().unwrap()];
        let table = run(&[&apart[..], &["--diversity", "0.2", "--min-score=-1"]].concat(), &[&picture]);
        assert!(text(&table.stdout).contains("hats/ключ"), "{}", text(&table.stderr));
        let all = run(&["duplicates", "--url", &url, "--collection", "c", "--threshold=-1"], &[]);
        assert_eq!(text(&all.stdout).lines().count(), 3, "{}", text(&all.stderr));
        // The server holds its data folder.
        let refused = run(&["index", "--data-dir", data.to_str().unwrap()], &[&dir_path]);
        let printed = text(&refused.stderr);
        assert!(
            !refused.status.success() && printed.contains("--url") && printed.trim().lines().count() == 1,
            "{printed}"
        );
        let nobody = run(&["index", "--url", "http://127.0.0.1:9"], &[&dir_path]);
        assert!(text(&nobody.stderr).contains("is the server running"), "{}", text(&nobody.stderr));
    })
    .await
    .unwrap();
    let listed = server.get_json("/items?collection=c").await;
    let ids: Vec<_> =
        listed["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["hats/1.jpg", "hats/ключ \"é\".jpg", "shoes/a b/%2F\\.jpg"]);
    // A collection of another encoder is refused before anything is sent.
    let body = serde_json::json!({"vector": [1, 2], "contract": "00000000000000aa"});
    server.client.put(server.at("/items/x?collection=other")).json(&body).send().await.unwrap();
    let (url, dir_path) = (server.url.clone(), dir.path().to_owned());
    let refused = tokio::task::spawn_blocking(move || {
        run(&["index", "--url", &url, "--collection", "other"], &[&dir_path])
    });
    let printed = text(&refused.await.unwrap().stderr);
    assert!(printed.contains("00000000000000aa") && printed.contains("this encoder's contract"), "{printed}");
    assert!(examples().len() > 3);
    server.stop().await;
}
