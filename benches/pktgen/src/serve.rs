//! The other end of `connect` and `rtt`.

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use std::io::Write;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

/// Where to listen.
#[derive(Args)]
pub struct Options {
    /// Port for TCP and UDP, over IPv4 and IPv6.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Threads that accept.
    #[arg(long, default_value_t = 4)]
    threads: usize,
}

/// `pktgen serve`: until it is ended.
pub fn run(options: &Options) -> Result<Value> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, options.port));
    let udp = UdpSocket::bind(address).with_context(|| format!("UDP port {}", options.port))?;
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("TCP port {}", options.port))?;
    socket.listen(4096)?;
    let tcp = TcpListener::from(socket);
    for _ in 0..options.threads {
        let tcp = tcp.try_clone()?;
        std::thread::spawn(move || {
            loop {
                let Ok((mut stream, _)) = tcp.accept() else { continue };
                // The client resets once it has the byte: nothing is left behind on either side.
                let _ = stream.write_all(b"!");
                let _ = SockRef::from(&stream).set_linger(Some(Duration::from_secs(1)));
            }
        });
    }
    let mut buffer = [0; 65_536];
    loop {
        if let Ok((n, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&buffer[..n], from);
        }
    }
}
