//! Load: requests per second and latencies of POST /embed beside what the machine gives without a server.
//!
//! `cargo bench --bench load` runs, interleaved in rounds on the same model and picture:
//! - `model`: ONNX Runtime alone, one session per core, the picture decoded beforehand, one by one;
//! - `decode+model`: the same with decode and resize, in one thread per core: the ceiling of any server;
//! - `embed c=N`: the real server in a process of its own, N connections, a JPEG as the raw body;
//! - with `--peer` or `--peer-json`, other servers that run already: `tests/load/peers.py` starts some, one of them
//!   `bare.rs`, the least server that could do it.
//!
//! The generator shares the cores with the server, as one does on a small machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use latentd::config::{Config, cores};
use latentd::locate;
use latentd_model::{Artefact, DecodeLimits, Encoder, SessionOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Parser)]
struct Args {
    /// Artefact folder; the one the server would choose when left out
    #[arg(long, env = "LATENTD_MODEL")]
    model: Option<PathBuf>,
    /// The picture
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/outwear-1.jpg"))]
    picture: PathBuf,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Rounds; the median of each kind is shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Connections of the measurements of the server
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
    connections: Vec<usize>,
    /// Another server to take turns with, which takes the picture as the raw body: NAME=HOST:PORT/PATH
    #[arg(long, value_parser = |text: &str| Target::parse(text, false))]
    peer: Vec<Target>,
    /// The same, which takes JSON: {"image": "<base64>"}
    #[arg(long, value_parser = |text: &str| Target::parse(text, true))]
    peer_json: Vec<Target>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// A server under load.
#[derive(Clone)]
struct Target {
    name: String,
    address: String,
    path: String,
    json: bool,
}

impl Target {
    fn parse(text: &str, json: bool) -> Result<Self, String> {
        let wanted = || format!("{text}: NAME=HOST:PORT/PATH is wanted");
        let (name, url) = text.split_once('=').ok_or_else(wanted)?;
        let (address, path) = url.split_once('/').ok_or_else(wanted)?;
        Ok(Self { name: name.into(), address: address.into(), path: format!("/{path}"), json })
    }

    /// The bytes of a whole request.
    fn request(&self, picture: &[u8]) -> Vec<u8> {
        use base64::Engine;
        let encoded = || base64::engine::general_purpose::STANDARD.encode(picture);
        let (kind, body) = match self.json {
            true => ("application/json", format!("{{\"image\":\"{}\"}}", encoded()).into_bytes()),
            false => ("image/jpeg", picture.to_owned()),
        };
        let Self { path, address, .. } = self;
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n"
        );
        [head.into_bytes(), body].concat()
    }
}

/// One measurement: how often something was done, and how long each took.
#[derive(Default, Clone)]
struct Sample {
    per_second: f64,
    milliseconds: Vec<f64>,
    /// Processor time of the process measured, which other work on the machine hardly changes.
    cpu_seconds: f64,
}

fn main() {
    let args = Args::parse();
    std::env::set_current_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let config = Config { model: args.model.clone().unwrap_or_default(), ..Config::default() };
    let artefact = locate::open(&config).unwrap();
    latentd_model::runtime::init(None).unwrap();
    let picture = std::fs::read(&args.picture).unwrap();
    let server = Server::start(artefact.dir());
    let own =
        Target { name: "embed".into(), address: server.address.clone(), path: "/embed".into(), json: false };
    let targets: Vec<_> = [own].into_iter().chain(args.peer.clone()).chain(args.peer_json.clone()).collect();
    let mut samples = vec![Vec::new(); targets.len() * args.connections.len() + 2];
    for _ in 0..args.rounds {
        samples[0].push(in_process(&artefact, &picture, args.seconds, false));
        samples[1].push(in_process(&artefact, &picture, args.seconds, true));
        let loads = targets.iter().flat_map(|target| args.connections.iter().map(move |c| (target, *c)));
        for (kind, (target, connections)) in loads.enumerate() {
            let before = cpu_seconds(server.child.id());
            let sample = over_http(target, &picture, connections, args.seconds);
            let own = target.address == server.address;
            let cpu_seconds = if own { cpu_seconds(server.child.id()) - before } else { f64::NAN };
            samples[kind + 2].push(Sample { cpu_seconds, ..sample });
        }
    }
    let names = ["model", "decode+model"].map(str::to_owned).into_iter();
    let names: Vec<_> = names
        .chain(targets.iter().flat_map(|t| args.connections.iter().map(|c| format!("{} c={c}", t.name))))
        .collect();
    print(&args, &artefact, &server, &names, samples.into_iter().map(median).collect());
}

fn print(args: &Args, artefact: &Artefact, server: &Server, names: &[String], rows: Vec<Sample>) {
    let threads = cores();
    println!(
        "{} on {threads} cores ({}), {}, {} rounds of {} s",
        artefact.manifest().full_name(),
        cpu(),
        args.picture.display(),
        args.rounds,
        args.seconds
    );
    println!("start to ready {:.0} ms, resident {:.0} MiB", server.ready_ms, resident_mib(server.child.id()));
    println!(
        "{:<14} {:>9} {:>9} {:>9} {:>9} {:>9} {:>14}",
        "", "req/s", "p50 ms", "p99 ms", "CPU ms", "/model", "/decode+model"
    );
    let (model, ceiling) = (rows[0].per_second, rows[1].per_second);
    for (name, mut row) in names.iter().zip(rows) {
        row.milliseconds.sort_by(f64::total_cmp);
        let at = |share: f64| row.milliseconds[((row.milliseconds.len() - 1) as f64 * share) as usize];
        let (p50, p99) = (at(0.5), at(0.99));
        let cpu = row.cpu_seconds * 1e3 / row.milliseconds.len() as f64;
        println!(
            "{name:<14} {:>9.0} {p50:>9.2} {p99:>9.2} {cpu:>9.2} {:>9.2} {:>14.2}",
            row.per_second,
            row.per_second / model,
            row.per_second / ceiling
        );
    }
}

/// The sample of middle speed.
fn median(mut samples: Vec<Sample>) -> Sample {
    samples.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    samples.swap_remove(samples.len() / 2)
}

/// One thread per core, each with its own session, without any server.
fn in_process(artefact: &Artefact, picture: &[u8], seconds: f64, decoding: bool) -> Sample {
    let stop = AtomicBool::new(false);
    let preprocess = &artefact.manifest().preprocess;
    let prepare = || preprocess.load(picture, &DecodeLimits::default()).unwrap();
    let encoders: Vec<_> =
        (0..cores()).map(|_| Encoder::open(artefact, &SessionOptions::default()).unwrap()).collect();
    std::thread::scope(|scope| {
        let (began, cpu) = (Instant::now(), cpu_seconds(std::process::id()));
        let work = |mut encoder: Encoder| {
            let (stop, prepare) = (&stop, &prepare);
            scope.spawn(move || {
                latentd_model::decode_alone();
                let mut pixels = [prepare()];
                let mut took = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    if decoding {
                        pixels = [prepare()];
                    }
                    encoder.embed(&pixels).unwrap();
                    took.push(start.elapsed().as_secs_f64() * 1e3);
                }
                took
            })
        };
        let threads: Vec<_> = encoders.into_iter().map(work).collect();
        std::thread::sleep(Duration::from_secs_f64(seconds));
        stop.store(true, Ordering::Relaxed);
        let milliseconds: Vec<f64> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        let per_second = milliseconds.len() as f64 / began.elapsed().as_secs_f64();
        Sample { per_second, milliseconds, cpu_seconds: cpu_seconds(std::process::id()) - cpu }
    })
}

/// `connections` keep-alive connections, each with one request in flight.
fn over_http(target: &Target, picture: &[u8], connections: usize, seconds: f64) -> Sample {
    let request = target.request(picture);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let began = Instant::now();
        let until = began + Duration::from_secs_f64(seconds);
        let all = (0..connections).map(|_| connection(&target.address, &request, until));
        let milliseconds: Vec<f64> = futures::future::join_all(all).await.into_iter().flatten().collect();
        let per_second = milliseconds.len() as f64 / began.elapsed().as_secs_f64();
        Sample { per_second, milliseconds, cpu_seconds: 0.0 }
    })
}

async fn connection(address: &str, request: &[u8], until: Instant) -> Vec<f64> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut took, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    while Instant::now() < until {
        let start = Instant::now();
        stream.write_all(request).await.unwrap();
        read_reply(&mut stream, &mut buffer).await;
        took.push(start.elapsed().as_secs_f64() * 1e3);
    }
    took
}

/// Reads one reply of a known length; anything but 200 ends the measurement.
async fn read_reply(stream: &mut TcpStream, buffer: &mut [u8]) {
    let mut read = 0;
    loop {
        let more = stream.read(&mut buffer[read..]).await.unwrap();
        assert!(more > 0, "the server closed the connection");
        read += more;
        let Some(head) = buffer[..read].windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(&buffer[..head]).unwrap().to_ascii_lowercase();
        assert!(text.starts_with("http/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..read]));
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if read >= head + 4 + length.parse::<usize>().unwrap() {
            return;
        }
    }
}

/// The real server in a process of its own, ended when dropped.
struct Server {
    child: Child,
    address: String,
    ready_ms: f64,
    _data: tempfile::TempDir,
}

impl Server {
    fn start(model: &Path) -> Self {
        let data = tempfile::tempdir().unwrap();
        let began = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_latentd"))
            // Every request has the same picture, so that a cache would be all that is measured.
            .args(["--listen", "127.0.0.1:0", "--cache-mib", "0", "--model"])
            .arg(model)
            .arg("--data-dir")
            .arg(data.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let line = lines.find(|line| line.contains("serving on http://")).expect("the server did not start");
        let address = line.split("http://").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
        lines.find(|line| line.contains("ready")).expect("the server was not ready");
        let ready_ms = began.elapsed().as_secs_f64() * 1e3;
        // The log is read on, or a full pipe would stop the server.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address, ready_ms, _data: data }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time of a process so far; the kernel counts in hundredths of a second.
fn cpu_seconds(process: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn resident_mib(process: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    name.trim_start_matches([' ', '\t', ':']).to_owned()
}
