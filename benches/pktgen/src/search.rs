//! RFC 2544 §26.1: the highest rate at which a forwarder loses no more than a given share.

use crate::flood::{self, Load};
use crate::sink::Sink;
use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};
use std::time::Duration;

/// How the search goes.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    flood: flood::Options,
    /// Network namespace of the sink, as a path.
    #[arg(long)]
    sink_netns: String,
    /// Interface of the sink.
    #[arg(long)]
    sink_dev: String,
    /// Port at which the sink counts, if a Service or NAT changes it.
    #[arg(long)]
    sink_port: Option<u16>,
    /// Share of packets that may be lost.
    #[arg(long, default_value_t = 0.001)]
    loss: f64,
    /// Trials.
    #[arg(long, default_value_t = 9)]
    trials: u32,
    /// Lowest rate asked for, in packets a second.
    #[arg(long, default_value_t = 10_000.0)]
    lowest: f64,
}

/// One trial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// Packets a second offered.
    pub offered: f64,
    /// Packets a second received.
    pub received: f64,
    /// Share lost.
    pub loss: f64,
}

/// Binary search between `lowest` and `highest`; the best trial that passed.
pub fn search(
    lowest: f64,
    highest: f64,
    allowed: f64,
    trials: u32,
    mut trial: impl FnMut(f64) -> Result<Trial>,
) -> Result<Option<Trial>> {
    let (mut low, mut high, mut best) = (lowest, highest, None::<Trial>);
    for _ in 0..trials {
        let rate = (low + high) / 2.0;
        let done = trial(rate)?;
        if done.loss <= allowed {
            low = rate;
            best = best.filter(|b| b.received >= done.received).or(Some(done));
        } else {
            high = rate;
        }
    }
    Ok(best)
}

/// `pktgen search`.
pub fn run(options: &Options) -> Result<Value> {
    let mut load = Load::new(&options.flood)?;
    let sink = Sink::new(&options.sink_netns, &options.sink_dev, options.sink_port.unwrap_or(options.flood.port))?;
    let time = Duration::from_secs_f64(options.flood.seconds);
    // Every flow is opened before anything is counted, and the way is shown to work.
    load.send(Some(50_000.0), Duration::from_millis(100))?;
    std::thread::sleep(Duration::from_millis(100));
    if sink.take()? == 0 {
        bail!("nothing arrives at {} in {}", options.sink_dev, options.sink_netns);
    }
    let mut measure = |rate: Option<f64>| -> Result<Trial> {
        let (offered, seconds) = load.send(rate, time)?;
        // What is still in queues arrives; a poll loop that sleeps wakes up within this.
        std::thread::sleep(Duration::from_millis(30));
        let received = sink.take()?.min(offered);
        let loss = 1.0 - received as f64 / offered.max(1) as f64;
        Ok(Trial { offered: offered as f64 / seconds, received: received as f64 / seconds, loss })
    };
    let flat_out = measure(None)?;
    // Nobody forwards more without loss than the generator makes, nor much more than what came through under overload.
    let highest = flat_out.offered.min(flat_out.received * 2.0).max(options.lowest * 2.0);
    let best = search(options.lowest, highest, options.loss, options.trials, |rate| measure(Some(rate)))?;
    // No rate at all is a result too: a machine that is busy with other things loses at any.
    let best = best.unwrap_or(Trial { offered: 0.0, received: 0.0, loss: 1.0 });
    Ok(json!({
        "pps": best.received, "offered_pps": best.offered, "loss": best.loss,
        "overload": { "offered_pps": flat_out.offered, "received_pps": flat_out.received },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_ends_at_the_rate_that_a_forwarder_can_carry() {
        let forwarder = |rate: f64| {
            let received = rate.min(650_000.0);
            Ok(Trial { offered: rate, received, loss: 1.0 - received / rate })
        };
        let best = search(10_000.0, 2_000_000.0, 0.001, 12, forwarder).unwrap().unwrap();
        assert!((640_000.0..=651_000.0).contains(&best.received), "{best:?}");
    }

    #[test]
    fn a_forwarder_that_always_loses_has_no_rate() {
        let lossy = |rate: f64| Ok(Trial { offered: rate, received: rate / 2.0, loss: 0.5 });
        assert_eq!(search(10_000.0, 1e6, 0.001, 8, lossy).unwrap(), None);
    }
}
