//! Fuzzing: every parser of hostile bytes as a function of bytes, for `fuzz/` and for the test over its seeds.
//!
//! A function here must return whatever it is given. Where a format can be written again, what was read is checked
//! against it; everything else is left to overflow checks, assertions and the fuzzer's limits on time and memory.

use axum::http::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use latentd_model::{DecodeLimits, Manifest, Preprocess};

use crate::fetch::target::Rules;
use crate::http::encoding::Format;
use crate::http::extract::MediaType;
use crate::http::{auth, entries, input, kserve, openai, search};
use crate::keys;
use crate::store::{CollectionName, Filter, ItemId, Metadata};

/// A target: its name, as in `fuzz/fuzz_targets` and `fuzz/seeds`, and what it runs.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 13] = [
    ("image", image),
    ("manifest", manifest),
    ("filter", filter),
    ("embed_json", embed_json),
    ("search_json", search_json),
    ("items_json", items_json),
    ("openai_json", openai_json),
    ("kserve", kserve_body),
    ("multipart", multipart),
    ("data_uri", data_uri),
    ("url", url),
    ("keys", keys_file),
    ("headers", headers),
];

/// Pixels that a fuzzed picture may declare: as few as still take every path (several blocks a side, every scale that a
/// JPEG may be decoded at), so that many pictures are tried in a second.
const MAX_PIXELS: u64 = 128 * 128;

/// The side that it is brought to: less than an eighth of the largest picture's.
const SIDE: u32 = 8;

/// A picture file: decoded, and brought to an encoder's size.
pub fn image(bytes: &[u8]) {
    let limits = DecodeLimits { max_bytes: 1 << 20, max_pixels: MAX_PIXELS };
    if let Ok(pixels) = latentd_model::decode(bytes, &limits) {
        let (width, height) = (pixels.width() as usize, pixels.height() as usize);
        assert_eq!(pixels.as_bytes().len(), width * height * 3);
        let squashed = Preprocess::squash(SIDE, SIDE, latentd_model::Filter::Bilinear).apply(&pixels);
        assert!(squashed.is_ok_and(|pixels| pixels.as_bytes().len() == (SIDE * SIDE * 3) as usize));
        // What can be decoded whole can be decoded as new encoders do, at a fraction of its size.
        let new = Preprocess {
            decoding: latentd_model::Decoding::NEW,
            ..Preprocess::squash(8, 8, latentd_model::Filter::Bilinear)
        };
        assert!(new.load(bytes, &limits).is_ok());
    }
}

/// An artefact's manifest.
pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes) {
        let again = serde_json::to_vec(&manifest).unwrap_or_default();
        // Not all of it: serde_json reads a number of many digits to within its last one.
        let same = |again: Manifest| again.contract == manifest.contract && again.files == manifest.files;
        assert!(Manifest::parse(&again).is_ok_and(same));
    }
}

/// A filter on metadata, ids, names and metadata.
pub fn filter(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = (ItemId::new(&text), CollectionName::new(&text));
    if let Ok(metadata) = Metadata::from_json(&text) {
        assert!(Metadata::from_json(metadata.as_str()).is_ok_and(|again| again == metadata));
    }
    let _ = Filter::from_json(&text);
}

/// The JSON of /embed.
pub fn embed_json(bytes: &[u8]) {
    let _ = input::json_inputs(bytes, 16);
}

/// The JSON of /search.
pub fn search_json(bytes: &[u8]) {
    let _ = search::check_json(bytes, 1000);
}

/// The JSON and the lines of /items.
pub fn items_json(bytes: &[u8]) {
    let _ = (entries::of_json(bytes), entries::of_ndjson(bytes), entries::one_of_json(bytes));
}

/// The JSON of /v1/embeddings.
pub fn openai_json(bytes: &[u8]) {
    let _ = openai::read(bytes);
}

/// A body of the Open Inference Protocol; what follows a NUL are its tensors.
pub fn kserve_body(bytes: &[u8]) {
    let length = bytes.iter().position(|&byte| byte == 0);
    let body = length.map_or_else(|| bytes.to_vec(), |at| [&bytes[..at], &bytes[at + 1..]].concat());
    if let Ok(infer) = kserve::Infer::read(body.into(), length, 16) {
        assert!((1..=16).contains(&infer.given.len()));
    }
}

/// A multipart form, whose boundary is the first line.
pub fn multipart(bytes: &[u8]) {
    let (first, body) = bytes.split_at(bytes.iter().position(|&byte| byte == b'\n').unwrap_or(0));
    let boundary = String::from_utf8_lossy(first).into_owned();
    let body = Bytes::copy_from_slice(body.strip_prefix(b"\n").unwrap_or(body));
    let read = input::multipart_with_fields(body, boundary, 16);
    if let Ok((files, fields)) = futures::executor::block_on(read) {
        assert!(files.len() <= 16 && fields.len() <= 16);
        let _ = entries::of_form(files, fields);
    }
}

/// Base64, or a data URI.
pub fn data_uri(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(image) = input::image_from_text(&text) {
        assert!(image.len() <= text.len());
    }
}

/// An address to fetch, and one that it redirects to, on the next line.
pub fn url(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (first, second) = text.split_once('\n').unwrap_or((&text, ""));
    let rules = Rules { hosts: vec!["*.example.org".to_owned()], ..Rules::default() };
    for rules in [Rules::default(), rules] {
        let Ok(target) = rules.target(first) else { continue };
        for target in [Ok(target.clone()), rules.redirected(&target.url, second)].into_iter().flatten() {
            assert!(["http", "https"].contains(&target.url.scheme()) && [80, 443].contains(&target.port));
            assert!(target.url.username().is_empty() && target.url.password().is_none());
            assert!(target.host.as_ref().err().is_none_or(|&ip| crate::fetch::address::is_public(ip)));
            if let (Ok(host), false) = (&target.host, rules.hosts.is_empty()) {
                assert!(host.ends_with(".example.org"), "{host}");
            }
        }
    }
}

/// A file of API keys.
pub fn keys_file(bytes: &[u8]) {
    match keys::file::parse(&String::from_utf8_lossy(bytes)) {
        Ok(keys) => drop(keys.into_iter().map(keys::Key::new).collect::<Vec<_>>()),
        Err(told) => assert!(!told.contains('\n'), "{told}"),
    }
}

/// The headers that are taken apart here, one a line.
pub fn headers(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    let names = [header::CONTENT_TYPE, header::ACCEPT, header::AUTHORIZATION];
    for (line, name) in bytes.split(|&byte| byte == b'\n').zip(names) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.insert(name, value);
        }
    }
    let _ = (MediaType::of(&headers), Format::of(&headers), auth::given(&headers));
}
