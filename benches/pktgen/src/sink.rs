//! Where packets are counted: an nftables counter at the ingress of an interface, which drops what it counts.
//!
//! Counted at the sink and never at the sender: a full ring on the way loses packets that the sender has sent.

use anyhow::{Context, Result, bail};
use std::io::Write;
use std::process::{Command, Stdio};

/// A counter in a network namespace; removed when dropped.
pub struct Sink {
    netns: String,
}

const TABLE: &str = "sg_pktgen";

impl Sink {
    /// Counts and drops UDP packets to `port` that arrive on `dev`.
    pub fn new(netns: &str, dev: &str, port: u16) -> Result<Sink> {
        let sink = Sink { netns: netns.to_owned() };
        let rules = format!(
            "table netdev {TABLE} {{\n counter got {{}}\n chain in {{ type filter hook ingress device \"{dev}\" priority 0; \
             udp dport {port} counter name got drop; }}\n}}\n"
        );
        sink.nft(&["-f", "-"], Some(&rules)).context("the sink's counter")?;
        Ok(sink)
    }

    fn nft(&self, arguments: &[&str], input: Option<&str>) -> Result<String> {
        let mut child = Command::new("nsenter")
            .arg(format!("--net={}", self.netns))
            .args(["--", "nft"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("nsenter and nft are needed: apt-get install -y util-linux nftables")?;
        if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
            stdin.write_all(text.as_bytes())?;
        }
        let done = child.wait_with_output()?;
        if !done.status.success() {
            bail!("nft in {}: {}", self.netns, String::from_utf8_lossy(&done.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Packets counted since the last call.
    pub fn take(&self) -> Result<u64> {
        let text = self.nft(&["-j", "reset", "counter", "netdev", TABLE, "got"], None)?;
        let value: serde_json::Value = serde_json::from_str(&text)?;
        value["nftables"]
            .as_array()
            .into_iter()
            .flatten()
            .find_map(|entry| entry["counter"]["packets"].as_u64())
            .context("nft says nothing of the counter")
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.nft(&["delete", "table", "netdev", TABLE], None);
    }
}
