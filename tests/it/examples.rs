//! The snippets in examples/ run as their README says.

use std::process::Command;

use crate::support::{Server, cosine, example, root, vectors};

async fn run(server: &Server, program: &str, file: &str) -> Option<String> {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found && program != "sh" {
        println!("skipped: {program} is not installed");
        return None;
    }
    let mut command = tokio::process::Command::new(program);
    let output =
        command.arg(file).current_dir(root()).env("LATENTD_URL", &server.url).output().await.unwrap();
    assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn the_clients_print_the_cosine() {
    let server = Server::start().await;
    let (one, two) = (server.embed(&example("outwear-1")).await, server.embed(&example("outwear-2")).await);
    for (program, file) in [("python3", "examples/client.py"), ("node", "examples/client.mjs")] {
        if let Some(printed) = run(&server, program, file).await {
            let printed: f64 = printed.trim().parse().unwrap();
            assert!((printed - cosine(&one, &two)).abs() < 1e-3, "{file}: {printed}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn the_curl_script_embeds_in_three_forms() {
    let server = Server::start().await;
    let printed = run(&server, "sh", "examples/embed.sh").await.unwrap();
    let replies: Vec<serde_json::Value> = printed
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(replies.len(), 3);
    let alone = server.embed(&example("outwear-1")).await;
    assert!(cosine(&alone, &vectors(&replies[0])[0]) > 0.999_99);
    assert_eq!(vectors(&replies[1]).len(), 2);
    assert_eq!(replies[2]["encoding"], "base64");
    server.stop().await;
}

#[tokio::test]
async fn the_search_script_finds_the_right_neighbour() {
    let server = Server::start().await;
    let printed = run(&server, "sh", "examples/search.sh").await.unwrap();
    let reply: serde_json::Value = serde_json::from_str(printed.trim()).unwrap();
    let found = reply["neighbours"].as_array().unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!(found[0]["id"], "outwear-2");
    assert!(found[0]["score"].as_f64().unwrap() > 0.9999);
    // An encoder that was not trained promises nothing about the others.
    if server.app.embedder().artefact().manifest().training.is_some() {
        assert_eq!(found[1]["id"], "outwear-1", "{reply}");
    }
    server.stop().await;
}
