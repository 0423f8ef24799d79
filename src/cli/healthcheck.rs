//! `latentd healthcheck`: asks a running server whether it is ready, for containers without curl.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

/// The arguments.
#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// Address the server listens on
    #[arg(long, env = "LATENTD_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Milliseconds to wait, at most
    #[arg(long, default_value_t = 2000)]
    timeout_ms: u64,
}

/// Exits 0 when /readyz says 200.
///
/// # Errors
/// When nobody answers.
pub fn run(args: &HealthcheckArgs) -> anyhow::Result<ExitCode> {
    let address = reachable(args.listen);
    let status = readyz(address, Duration::from_millis(args.timeout_ms.max(1)))
        .with_context(|| format!("no answer from {address}"))?;
    println!("{}", status.trim());
    let ready = status.split(' ').nth(1) == Some("200");
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A server that listens on every address is asked on the loopback one.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// The status line of GET /readyz.
fn readyz(address: SocketAddr, limit: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}
