//! Connections of our own making: HTTP/1.1 to an address that the caller chose, with TLS where asked for.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use hyper::body::Body;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::tls::{self, TlsError};

/// Longest head of a reply that is read, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The network.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The HTTP layer.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The certificates to trust.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A name that no certificate can have.
    #[error("no certificate can be for this host name")]
    Name,
}

/// Whom to trust: the system's certificates, and those of a file. Read when first needed.
#[derive(Debug, Default)]
pub struct Roots {
    file: Option<PathBuf>,
    config: OnceLock<Arc<ClientConfig>>,
}

impl Roots {
    /// The system's, and those of `file` unless it is empty.
    #[must_use]
    pub fn system_and(file: &Path) -> Self {
        let file = Some(file.to_owned()).filter(|file| !file.as_os_str().is_empty());
        Self { file, config: OnceLock::new() }
    }

    /// Anybody: for asking a server of this machine what is no secret.
    ///
    /// # Errors
    /// Never in practice: only for cryptography without any protocol.
    pub fn anybody() -> Result<Self, TlsError> {
        let provider = tls::provider();
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_no_client_auth();
        Ok(Self { file: None, config: OnceLock::from(Arc::new(config)) })
    }

    fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        if let Some(config) = self.config.get() {
            return Ok(config.clone());
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(file) = &self.file {
            roots.add_parsable_certificates(tls::certificates(file)?);
        }
        let config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(self.config.get_or_init(|| Arc::new(config)).clone())
    }
}

/// Takes every certificate, of whom ever it is.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A connection; dropping it closes it.
pub struct Connection<B = http_body_util::Empty<bytes::Bytes>> {
    /// Where requests go.
    pub sender: SendRequest<B>,
    _driver: Driver,
}

struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Connects to `address`; over TLS when a certificate for the host `tls` is asked for.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect<B>(
    address: SocketAddr,
    tls: Option<&str>,
    roots: &Roots,
) -> Result<Connection<B>, ConnectError>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let stream: Box<dyn Stream> = match tls {
        None => Box::new(tcp),
        Some(host) => {
            let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_owned();
            let name = ServerName::try_from(host).map_err(|_| ConnectError::Name)?;
            Box::new(TlsConnector::from(roots.config()?).connect(name, tcp).await?)
        }
    };
    let (sender, driver) =
        http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "a connection of ours broke");
        }
    });
    Ok(Connection { sender, _driver: Driver(driver) })
}
