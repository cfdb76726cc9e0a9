//! UDP streams made in the kernel, of one frame size or of the simple IMIX.

use crate::pace;
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use sluice_hostnet::Netns;
use sluice_livegen::{Generator, HEAD, Stream};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Frame lengths of the simple IMIX without FCS, and how often each comes (RFC 6985 §3 writes such a genome).
const IMIX: [(usize, u32); 3] = [(64, 7), (590, 4), (1514, 1)];

/// What is sent, and where.
#[derive(Args, Clone)]
pub struct Options {
    /// Interface to send on, in this network namespace.
    #[arg(long)]
    pub dev: String,
    /// Source address.
    #[arg(long)]
    pub from: IpAddr,
    /// Destination addresses, used in turn; several only over IPv4.
    #[arg(long, value_delimiter = ',', required = true)]
    pub to: Vec<IpAddr>,
    /// MAC of the next hop.
    #[arg(long)]
    pub to_mac: String,
    /// Destination port.
    #[arg(long, default_value_t = 9)]
    pub port: u16,
    /// Source ports used in turn, from 1024 on.
    #[arg(long, default_value_t = 1000)]
    pub flows: u16,
    /// Frame length in bytes without FCS, or `imix`.
    #[arg(long, default_value = "64")]
    pub size: String,
    /// Packets a second; without it as many as one core makes.
    #[arg(long)]
    pub rate: Option<f64>,
    /// For how long.
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
}

fn mac(text: &str) -> Result<[u8; 6]> {
    let parts: Vec<u8> =
        text.split(':').map(|p| u8::from_str_radix(p, 16)).collect::<Result<_, _>>().unwrap_or_default();
    parts.try_into().map_err(|_| anyhow::anyhow!("{text} is no MAC address"))
}

/// One's-complement sum of 16-bit words.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], *w.get(1).unwrap_or(&0)]))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The header template of a stream, as [`Stream::head`] wants it.
fn head(options: &Options, from_mac: [u8; 6], length: usize) -> Result<[u8; HEAD]> {
    let mut head = [0; HEAD];
    head[..6].copy_from_slice(&mac(&options.to_mac)?);
    head[6..12].copy_from_slice(&from_mac);
    let port = options.port.to_be_bytes();
    match (options.from, options.to[0]) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            head[12..14].copy_from_slice(&[0x08, 0x00]);
            head[14..16].copy_from_slice(&[0x45, 0]);
            head[16..18].copy_from_slice(&((length - 14) as u16).to_be_bytes());
            head[20] = 0x40;
            head[22..24].copy_from_slice(&[64, 17]);
            head[26..30].copy_from_slice(&from.octets());
            head[30..34].copy_from_slice(&to.octets());
            head[36..38].copy_from_slice(&port);
            head[38..40].copy_from_slice(&((length - 34) as u16).to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let udp = ((length - 54) as u16).to_be_bytes();
            head[12..14].copy_from_slice(&[0x86, 0xdd]);
            head[14] = 0x60;
            head[18..20].copy_from_slice(&udp);
            head[20..22].copy_from_slice(&[17, 64]);
            head[22..38].copy_from_slice(&from.octets());
            head[38..54].copy_from_slice(&to.octets());
            head[56..58].copy_from_slice(&port);
            head[58..60].copy_from_slice(&udp);
            // Pseudo-header, ports and length, and the payload word that stands for the source port.
            let total = sum(&head[22..54]) + 17 + sum(&udp) + sum(&port) + sum(&udp) + 0xffff;
            let check = !fold(total);
            head[60..62].copy_from_slice(&if check == 0 { 0xffff } else { check }.to_be_bytes());
        }
        _ => bail!("--from and --to are of different families"),
    }
    Ok(head)
}

/// Generators of a load, each with its share.
pub struct Load {
    generators: Vec<(Generator, u32)>,
    shares: u32,
}

impl Load {
    /// Loads the programs.
    pub fn new(options: &Options) -> Result<Load> {
        let mix: Vec<(usize, u32)> = match options.size.as_str() {
            "imix" => IMIX.to_vec(),
            size => vec![(size.parse().with_context(|| format!("--size {size}: a number of bytes, or imix"))?, 1)],
        };
        let shortest = if options.from.is_ipv4() { HEAD } else { HEAD + 6 };
        let device = sluice_hostnet::interface(&Netns::current()?, &options.dev)?
            .with_context(|| format!("there is no interface {} in this network namespace", options.dev))?;
        let destinations: Vec<Ipv4Addr> =
            options.to.iter().filter_map(|a| if let IpAddr::V4(v4) = a { Some(*v4) } else { None }).collect();
        if options.to.len() > 1 && destinations.len() != options.to.len() {
            bail!("several destinations only over IPv4");
        }
        let mut generators = Vec::new();
        for (length, share) in &mix {
            let length = (*length).max(shortest);
            let stream = Stream {
                ifindex: device.index,
                length,
                flows: options.flows,
                first_port: 1024,
                head: head(options, device.mac, length)?,
                destinations: destinations.clone(),
            };
            generators.push((Generator::new(&stream)?, *share));
        }
        Ok(Load { generators, shares: mix.iter().map(|(_, share)| share).sum() })
    }

    /// Sends at a rate for a time; returns packets offered and seconds.
    pub fn send(&mut self, rate: Option<f64>, time: Duration) -> Result<(u64, f64)> {
        let mut owed = vec![0u32; self.generators.len()];
        pace::run(rate, time, |packets| {
            let mut left = packets;
            let last = owed.len() - 1;
            for (at, (generator, share)) in self.generators.iter_mut().enumerate() {
                // What a bucket cannot divide is owed, so that the shares come out over time.
                let exact = u64::from(packets) * u64::from(*share) + u64::from(owed[at]);
                let part = if at == last { left } else { ((exact / u64::from(self.shares)) as u32).min(left) };
                owed[at] = (exact % u64::from(self.shares)) as u32;
                left -= part;
                if part > 0 {
                    generator.run(part)?;
                }
            }
            Ok(())
        })
    }
}

/// `pktgen flood`.
pub fn run(options: &Options) -> Result<Value> {
    let (offered, seconds) = Load::new(options)?.send(options.rate, Duration::from_secs_f64(options.seconds))?;
    Ok(json!({ "offered": offered, "seconds": seconds, "offered_pps": offered as f64 / seconds }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(from: &str, to: &str) -> Options {
        Options {
            dev: "eth0".into(),
            from: from.parse().unwrap(),
            to: vec![to.parse().unwrap()],
            to_mac: "02:00:a9:fe:01:01".into(),
            port: 9,
            flows: 1,
            size: "64".into(),
            rate: None,
            seconds: 1.0,
        }
    }

    #[test]
    fn the_udp_checksum_over_ipv6_holds_for_every_source_port() {
        let head = head(&options("fd00::1", "fd00:1::2"), [2; 6], 70).unwrap();
        for port in [0u16, 1024, 40_000, 65_535] {
            let mut frame = [0u8; 70];
            frame[..HEAD].copy_from_slice(&head);
            frame[54..56].copy_from_slice(&port.to_be_bytes());
            frame[62..64].copy_from_slice(&(!port).to_be_bytes());
            let pseudo = sum(&frame[22..54]) + 17 + 16;
            assert_eq!(fold(pseudo + sum(&frame[54..70])), 0xffff, "port {port}");
        }
    }

    #[test]
    fn families_and_macs_are_checked() {
        assert!(head(&options("10.0.0.1", "fd00::1"), [2; 6], 70).is_err());
        assert!(mac("02:00:a9").is_err() && mac("x").is_err());
    }
}
