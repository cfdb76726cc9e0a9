//! What an operator is told of SNAT ports: a log line per block leased and given back, and a warning before an address runs
//! out of ports.
//!
//! Owner: the control thread. Source: RFC 6888 REQ-12 and REQ-13. A line names the source, the address it bears outside,
//! the ports and the time, so that a complaint about an address and a port leads to a pod, without a line per flow.

use sluice_engine::Shared;
use sluice_engine::nat::{BlockEvent, BlockLine};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Percent of an address's ports in leased blocks from which it is warned of, and at which the warning ends.
const WARN: usize = 80;
const CALM: usize = 70;

/// Addresses that are short of ports.
#[derive(Debug, Default)]
pub struct SnatWatch {
    short: BTreeSet<IpAddr>,
    problems: Vec<String>,
    news: Vec<(IpAddr, String)>,
}

impl SnatWatch {
    /// Looks at every address and writes what blocks have done; `pod_of` names the pod of a source.
    pub fn look(&mut self, shared: &Shared, started: SystemTime, pod_of: impl Fn(IpAddr) -> Option<String>) {
        while let Some(line) = shared.spaces.log.take() {
            write(&line, started, &pod_of);
        }
        match shared.spaces.log.take_lost() {
            0 => {}
            lost => tracing::warn!(lost, "lines about SNAT blocks found no place and are lost"),
        }
        let spaces = shared.spaces.all();
        let used: Vec<(IpAddr, usize, usize)> =
            spaces.iter().map(|s| (s.address.into(), s.leased_ports(), s.ports())).collect();
        self.weigh(&used);
    }

    /// Addresses that have just come to be short of ports, with what there is to say; each time once.
    pub fn take_news(&mut self) -> Vec<(IpAddr, String)> {
        std::mem::take(&mut self.news)
    }

    /// What `sluice status` says.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Address, ports in leased blocks, ports there are.
    fn weigh(&mut self, spaces: &[(IpAddr, usize, usize)]) {
        self.problems.clear();
        for (address, used, all) in spaces {
            let percent = used * 100 / (*all).max(1);
            let was = self.short.contains(address);
            let short = used * 100 >= WARN * all || was && used * 100 > CALM * all;
            if short {
                let text = format!(
                    "SNAT ports of {address}: {percent} % are leased; when none is left, new connections are dropped \
                     (SnatPortsExhausted). More egress addresses, or a wider masquerade.ports, give more"
                );
                if !was {
                    tracing::warn!(%address, used, all, "{text}");
                    self.short.insert(*address);
                    self.news.push((*address, text.clone()));
                }
                self.problems.push(text);
            } else if was {
                tracing::info!(%address, used, all, "SNAT ports are enough again");
                self.short.remove(address);
            }
        }
    }
}

fn write(line: &BlockLine, started: SystemTime, pod_of: &impl Fn(IpAddr) -> Option<String>) {
    let at = (started + Duration::from_nanos(line.at)).duration_since(UNIX_EPOCH).unwrap_or_default();
    let at = format!("{}.{:03}", at.as_secs(), at.subsec_millis());
    let (source, address): (IpAddr, IpAddr) = (line.source.into(), line.address.into());
    let pod = pod_of(source).unwrap_or_default();
    let ports = format!("{}-{}", line.ports.0, line.ports.1);
    let event = match line.event {
        BlockEvent::Leased => "leased",
        BlockEvent::Released => "released",
    };
    tracing::info!(target: "sluice::nat", event, %source, pod, %address, ports, at, "SNAT block");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_warned_of_once_until_it_has_calmed_down() {
        let address: IpAddr = "192.0.2.50".parse().unwrap();
        let mut watch = SnatWatch::default();
        let mut at = |used| {
            watch.weigh(&[(address, used, 1000)]);
            (watch.problems().len(), watch.take_news().len())
        };
        let expected = [(0, 0), (1, 1), (1, 0), (1, 0), (0, 0), (0, 0), (1, 1)];
        assert_eq!([at(799), at(800), at(750), at(701), at(700), at(799), at(810)], expected);
    }
}
