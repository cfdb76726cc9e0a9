//! UDP round trips, one at a time; an answer that is not the datagram sent is an error.

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Whom to ask, and how often.
#[derive(Args)]
pub struct Options {
    /// Address and port.
    #[arg(long)]
    to: SocketAddr,
    /// For how long.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Payload bytes.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Pause between two, in microseconds: shows what an idle forwarder adds.
    #[arg(long, default_value_t = 0)]
    pause_us: u64,
}

/// `pktgen rtt`.
pub fn run(options: &Options) -> Result<Value> {
    let socket = UdpSocket::bind(if options.to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(options.to)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut times = crate::histogram()?;
    let mut datagram = vec![0; options.size.max(8)];
    let mut answer = vec![0; datagram.len() + 1];
    let (mut lost, mut number) = (0u64, 0u64);
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < options.seconds {
        number += 1;
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        let began = Instant::now();
        socket.send(&datagram)?;
        loop {
            match socket.recv(&mut answer) {
                Ok(n) if answer[..n] == datagram[..] => {
                    times.saturating_record(began.elapsed().as_nanos() as u64);
                    break;
                }
                // A late answer to a datagram that was given up.
                Ok(n) if n == datagram.len() && answer[..8] < datagram[..8] => {}
                Ok(_) => bail!("the answer to datagram {number} is not that datagram"),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    lost += 1;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if options.pause_us > 0 {
            std::thread::sleep(Duration::from_micros(options.pause_us));
        }
    }
    let at = |quantile: f64| times.value_at_quantile(quantile) as f64 / 1e3;
    Ok(json!({
        "round_trips": times.len(), "lost": lost, "p50_us": at(0.5), "p99_us": at(0.99), "p99_9_us": at(0.999),
        "max_us": times.max() as f64 / 1e3,
    }))
}
