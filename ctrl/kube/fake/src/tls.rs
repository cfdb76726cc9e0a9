//! HTTPS for the tests' API server: an authority made for the test, and a listener that speaks TLS.
//!
//! Source: RFC 8446 through `rustls`; the certificate bears the addresses that tests connect to, as kubeadm's does.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::server::TlsStream;

/// Longest handshake: a client that says nothing must not keep others waiting.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// An authority, and a server certificate that it has signed.
#[derive(Clone, Debug)]
pub struct Identity {
    authority: String,
    config: Arc<ServerConfig>,
}

impl Identity {
    /// A new authority, and a certificate for these names and addresses.
    pub fn new(names: &[&str]) -> io::Result<Identity> {
        let certificate = |names: &[&str], common: &str| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let mut params = CertificateParams::new(names)?;
            params.distinguished_name.push(DnType::CommonName, common);
            Ok::<_, rcgen::Error>(params)
        };
        let make = || {
            let mut root = certificate(&[], "authority of a test")?;
            root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let root_key = KeyPair::generate()?;
            let authority = root.self_signed(&root_key)?.pem();
            let key = KeyPair::generate()?;
            let issuer = Issuer::new(root, root_key);
            let signed = certificate(names, "kube-apiserver")?.signed_by(&key, &issuer)?;
            Ok::<_, rcgen::Error>((authority, signed.der().clone(), key.serialize_der()))
        };
        let (authority, certificate, key) = make().map_err(io::Error::other)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .map_err(io::Error::other)?;
        Ok(Identity { authority, config: Arc::new(config) })
    }

    /// The authority's certificate, as PEM: what clients have as `ca.crt`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// A listener that speaks TLS.
    pub(crate) fn listen(&self, tcp: TcpListener) -> TlsListener {
        TlsListener { tcp, acceptor: TlsAcceptor::from(self.config.clone()) }
    }
}

/// Accepts connections once their handshake is done; one that fails is the client's affair.
pub(crate) struct TlsListener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.tcp).await;
            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream)).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}
