//! New TCP connections: each is opened, reads one byte and is reset, so that no port waits in TIME-WAIT.

use anyhow::{Context, Result};
use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use socket2::SockRef;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Whom to connect to, and how.
#[derive(Args)]
pub struct Options {
    /// Addresses with ports, used in turn.
    #[arg(long, value_delimiter = ',', required = true)]
    to: Vec<SocketAddr>,
    /// Connections open at a time.
    #[arg(long, default_value_t = 16)]
    parallel: usize,
    /// For how long.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

/// What a thread saw.
struct Seen {
    done: u64,
    failed: u64,
    times: Histogram<u64>,
}

fn one(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

/// `pktgen connect`.
pub fn run(options: &Options) -> Result<Value> {
    let until = Instant::now() + Duration::from_secs_f64(options.seconds);
    let start = Instant::now();
    let seen: Vec<Result<Seen>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.parallel)
            .map(|number| {
                scope.spawn(move || {
                    let mut seen = Seen { done: 0, failed: 0, times: crate::histogram()? };
                    let mut next = number;
                    while Instant::now() < until {
                        let began = Instant::now();
                        match one(options.to[next % options.to.len()]) {
                            Ok(()) => {
                                seen.done += 1;
                                seen.times.saturating_record(began.elapsed().as_nanos() as u64);
                            }
                            Err(_) => seen.failed += 1,
                        }
                        next += options.parallel;
                    }
                    Ok(seen)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread has panicked"))))
            .collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let mut times = crate::histogram()?;
    let (mut done, mut failed) = (0, 0);
    for part in seen {
        let part = part?;
        done += part.done;
        failed += part.failed;
        times.add(part.times).context("histograms of one kind add up")?;
    }
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let cpu = usage.tv_sec as f64 + usage.tv_nsec as f64 / 1e9;
    Ok(json!({
        "connections_per_second": done as f64 / seconds, "connections": done, "failed": failed,
        "client_us_per_connection": cpu * 1e6 / done.max(1) as f64,
        "p50_us": times.value_at_quantile(0.5) as f64 / 1e3, "p99_us": times.value_at_quantile(0.99) as f64 / 1e3,
    }))
}
