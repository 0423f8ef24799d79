//! /embed with good pictures: every form gives the same vector, alone or among others.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use crate::support::{Server, cosine, example, examples, problem, vectors};

#[tokio::test]
async fn the_three_body_forms_agree() {
    let server = Server::start().await;
    let picture = example("outwear-1");
    let raw = server.embed(&picture).await;
    let form = server.post_form("/embed", vec![picture.clone()]).await;
    let text = BASE64_STANDARD.encode(&picture);
    let uri = format!("data:image/jpeg;base64,{text}");
    let json = server.post_json("/embed", &json!({"inputs": [{"image": text}, {"image": uri}]})).await;
    let octets = server.client.post(server.at("/embed")).header("content-type", "application/octet-stream");
    let octets = octets.body(picture).send().await.unwrap();
    for reply in [form, json, octets] {
        assert_eq!(reply.status(), 200);
        for vector in vectors(&reply.json().await.unwrap()) {
            assert!(cosine(&raw, &vector) > 0.999_999, "{}", cosine(&raw, &vector));
        }
    }
    let norm: f64 = raw.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    assert!((norm - 1.0).abs() < 1e-4, "{norm}");
    server.stop().await;
}

#[tokio::test]
async fn a_reply_names_model_contract_and_dim() {
    let server = Server::start().await;
    let reply = server.post("/embed", example("hat-1")).await;
    let headers = reply.headers().clone();
    let body: serde_json::Value = reply.json().await.unwrap();
    let info = server.get_json("/info").await;
    assert_eq!(body["model"], info["model"]["name"]);
    assert_eq!(body["contract"], info["model"]["contract"]);
    assert_eq!(body["dim"], info["model"]["dim"]);
    assert_eq!(body["encoding"], "float");
    assert_eq!(body["results"][0]["index"], 0);
    assert_eq!(headers["x-latentd-contract"].to_str().unwrap(), body["contract"]);
    assert!(headers["server-timing"].to_str().unwrap().contains("inference;dur="));
    server.stop().await;
}

#[tokio::test]
async fn alone_and_in_a_batch_of_32_a_picture_gives_the_same_vector() {
    let server = Server::start().await;
    let pictures: Vec<_> = examples().into_iter().map(|(_, bytes)| bytes).cycle().take(32).collect();
    let reply = server.post_form("/embed", pictures.clone()).await;
    let batch = vectors(&reply.json().await.unwrap());
    assert_eq!(batch.len(), 32);
    for (index, vector) in batch.iter().enumerate() {
        let alone = server.embed(&pictures[index]).await;
        assert!(cosine(&alone, vector) >= 0.999_99, "picture {index}: {}", cosine(&alone, vector));
    }
    server.stop().await;
}

#[tokio::test]
async fn each_picture_of_a_batch_fails_alone() {
    let server = Server::start().await;
    let good = BASE64_STANDARD.encode(example("hat-1"));
    let text = BASE64_STANDARD.encode("no picture at all, but a line of text");
    let inputs = json!({"inputs": [{"image": good}, {"image": text}, {"image": "%%%"}, {"url": "http://127.0.0.1/x.jpg"}, {}, {"image": ""}, {"image": good}]});
    let reply = server.post_json("/embed", &inputs).await;
    assert_eq!(reply.status(), 200);
    let body: serde_json::Value = reply.json().await.unwrap();
    let codes: Vec<_> =
        body["results"].as_array().unwrap().iter().map(|r| r["error"]["code"].as_str()).collect();
    let expected = [
        None,
        Some("unsupported_format"),
        Some("invalid_base64"),
        Some("url_inputs_disabled"),
        Some("invalid_input"),
        Some("empty_image"),
        None,
    ];
    assert_eq!(codes, expected);
    assert_eq!(body["results"][0]["embedding"], body["results"][6]["embedding"]);
    server.stop().await;
}

#[tokio::test]
async fn preprocess_gives_the_picture_at_the_encoders_size_and_embeds_the_same() {
    let server = Server::start().await;
    let picture = example("dress-1");
    let reply = server.post("/preprocess", picture.clone()).await;
    assert_eq!(reply.headers()["content-type"], "image/png");
    let png = reply.bytes().await.unwrap().to_vec();
    let decoded = image::load_from_memory(&png).unwrap();
    let preprocess = &server.app.embedder().artefact().manifest().preprocess.clone();
    assert_eq!((decoded.width(), decoded.height()), (preprocess.width, preprocess.height));
    assert!(cosine(&server.embed(&png).await, &server.embed(&picture).await) > 0.999_99);
    problem(server.post_form("/preprocess", vec![png.clone(), png]).await, 400, "too_many_images").await;
    server.stop().await;
}
