//! `latentd healthcheck`: asks a running server whether it is ready, for containers without curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use hyper::{Request, StatusCode};

use crate::net::{self, Connection, Roots};

/// The arguments.
#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// Address the server listens on
    #[arg(long, env = "LATENTD_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Milliseconds to wait, at most
    #[arg(long, default_value_t = 2000)]
    timeout_ms: u64,
    /// Speak TLS, also where the variable LATENTD_TLS_CERT is set as it is for the server. Whose certificate it is
    /// does not count: this machine asks itself, and tells nothing
    #[arg(long)]
    tls: bool,
    /// The server's certificate
    #[arg(long, env = "LATENTD_TLS_CERT", hide = true)]
    tls_cert: Option<PathBuf>,
}

/// Exits 0 when /readyz says 200.
///
/// # Errors
/// When nobody answers.
pub fn run(args: &HealthcheckArgs) -> anyhow::Result<ExitCode> {
    let address = reachable(args.listen);
    let tls = args.tls || args.tls_cert.as_ref().is_some_and(|path| !path.as_os_str().is_empty());
    let limit = Duration::from_millis(args.timeout_ms.max(1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = runtime.block_on(async { tokio::time::timeout(limit, readyz(address, tls)).await });
    let status =
        asked.map_err(anyhow::Error::from).flatten().with_context(|| format!("no answer from {address}"))?;
    println!("{status}");
    Ok(if status == StatusCode::OK { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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

/// The status of GET /readyz.
async fn readyz(address: SocketAddr, tls: bool) -> anyhow::Result<StatusCode> {
    let name = tls.then_some("localhost");
    let mut connection: Connection = net::connect(address, name, &Roots::anybody()?).await?;
    let request =
        Request::get("/readyz").header("host", address.to_string()).body(http_body_util::Empty::new())?;
    Ok(connection.sender.send_request(request).await?.status())
}
