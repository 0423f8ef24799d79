//! The metrics: what the dashboard and the alerting rules name is there.

use std::collections::BTreeSet;

use crate::support::{Server, crops, example, root};

#[tokio::test(flavor = "multi_thread")]
async fn dashboard_and_alerts_name_metrics_that_exist() {
    let server = Server::start().await;
    // Of each kind of event one, so that every series has begun.
    for _ in 0..2 {
        assert_eq!(server.post("/embed", example("hat-1")).await.status(), 200);
    }
    assert_eq!(server.post("/embed", "no picture").await.status(), 415);
    let never = futures::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let late = server.client.post(server.at("/embed")).header("content-type", "image/jpeg");
    let late =
        late.header("grpc-timeout", "20m").body(reqwest::Body::wrap_stream(never)).send().await.unwrap();
    assert_eq!(late.status(), 504);
    let dir = tempfile::tempdir().unwrap();
    let files = crops(dir.path()).into_iter().take(40).map(|path| std::fs::read(path).unwrap()).collect();
    assert_eq!(server.post_form("/embed", files).await.status(), 200);
    server.app.embedder().measure_health().await;

    let text = server.client.get(server.at("/metrics")).send().await.unwrap().text().await.unwrap();
    let series = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let there: BTreeSet<&str> = series.filter_map(|line| line.split(['{', ' ']).next()).collect();
    let value = |name: &str| -> f64 {
        let line =
            text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let dashboard: serde_json::Value = serde_json::from_str(&file("latentd.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let expressions: Vec<_> = targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    assert!(expressions.len() > 20, "{}", expressions.len());
    let alerts = file("alerts.yaml");
    let rules = alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).map(str::to_owned);
    let named: BTreeSet<String> =
        expressions.into_iter().chain(rules).flat_map(|text| names(&text)).collect();
    assert!(named.len() > 20, "{named:?}");
    for name in &named {
        assert!(there.contains(name.as_str()), "{name} is not among {there:?}");
    }
    // And the other way round: what is measured can be seen.
    let base = |name: &str| {
        let ends = ["_bucket", "_sum", "_count"];
        ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    };
    let shown: BTreeSet<String> = named.iter().map(|name| base(name)).collect();
    let hidden: Vec<_> = there.iter().map(|name| base(name)).filter(|name| !shown.contains(name)).collect();
    assert!(hidden.is_empty(), "not on the dashboard: {hidden:?}");
    // The table of the docs has the same.
    let docs = std::fs::read_to_string(root().join("docs/serving.md")).unwrap();
    let table = docs.lines().filter(|line| line.starts_with("| `latentd_"));
    // There is no collector.
    let told: BTreeSet<String> =
        table.flat_map(names).filter(|name| !name.starts_with("latentd_spans_")).collect();
    let measured: BTreeSet<String> = there.iter().map(|name| base(name)).collect();
    assert_eq!(told, measured);

    assert!(value("latentd_embedding_window") >= 40.0);
    assert!((0.1..1.5).contains(&value("latentd_embedding_std")));
    assert!(value("latentd_embedding_effective_rank") > 2.0);
    assert!(value("process_resident_memory_bytes") > 1e7);
    server.stop().await;
}

fn file(name: &str) -> String {
    std::fs::read_to_string(root().join("docker/grafana").join(name)).unwrap()
}

/// The metrics that a PromQL expression names.
fn names(expression: &str) -> Vec<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.starts_with("latentd_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}
