//! Rates of pods' ports: what annotations and the runtime ask for, brought to the workers.
//!
//! Source: `kubernetes.io/ingress-bandwidth` and `kubernetes.io/egress-bandwidth`, CNI capability `bandwidth`. An annotation
//! counts live and goes before what the runtime said at ADD, which comes from the same annotation as it was then.

use super::capabilities::{Bandwidth, Bits};
use super::control::Control;
use crate::api::problem::Problem;
use sluice_ctrl::model::quantity::bandwidth;
use sluice_ctrl::model::{Labels, NamespacedName};
use sluice_engine::Rate;

const ANNOTATIONS: [&str; 2] = ["kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"];
/// Part of a second whose bytes may pass at once where no burst is said.
const BURST_PART: u64 = 20;
/// The least burst: a segment as a pod hands it over.
const LEAST_BURST: u64 = 65_536;

/// A rate as a worker has it. Runtimes say "no burst in particular" by the largest number they have: more than a second's
/// worth is cut to that.
fn rate(bits: Bits) -> Rate {
    let bytes_per_second = bits.rate.div_ceil(8).max(1);
    let burst = match bits.burst / 8 {
        0 => bytes_per_second / BURST_PART,
        burst => burst.min(bytes_per_second),
    };
    Rate { bytes_per_second, burst: burst.max(LEAST_BURST) }
}

/// Towards the pod and from it, with what could not be read of the annotations.
fn wanted(asked: Bandwidth, annotations: Option<&Labels>) -> ([Option<Rate>; 2], Vec<(&'static str, String)>) {
    let mut problems = Vec::new();
    let mut one = |annotation: &'static str, asked: Option<Bits>| {
        let said = annotations.and_then(|a| a.get(annotation)).map(|text| bandwidth(text));
        let bits = match said {
            Some(Ok(rate)) => {
                let burst = asked.filter(|a| a.rate == rate).map_or(0, |a| a.burst);
                Some(Bits { rate, burst })
            }
            Some(Err(why)) => {
                problems.push((annotation, why));
                asked
            }
            None => asked,
        };
        bits.map(rate)
    };
    let rates = [one(ANNOTATIONS[0], asked.ingress), one(ANNOTATIONS[1], asked.egress)];
    (rates, problems)
}

impl Control {
    /// Brings rates that have changed to the workers.
    pub fn limit_pods(&mut self) {
        let current: Vec<(NamespacedName, u16, u16)> =
            self.view.pods.iter().map(|(name, pod)| (name.clone(), pod.port, pod.worker)).collect();
        self.limits.retain(|port, _| current.iter().any(|(_, p, _)| p == port));
        self.limit_problems.clear();
        for (name, port, worker) in current {
            let asked = self.attachments.by_port(port).map(|a| a.bandwidth).unwrap_or_default();
            let annotations = self.cluster.pods.get(&name).map(|p| &p.annotations);
            let (rates, problems) = wanted(asked, annotations);
            self.limit_problems.extend(problems.into_iter().map(|(annotation, why)| Problem {
                object: Some(format!("Pod/{name}")),
                field: Some(format!("metadata.annotations[{annotation}]")),
                ..Problem::plain(why)
            }));
            if self.limits.get(&port).copied().unwrap_or_default() != rates {
                self.limits.insert(port, rates);
                if let Some(worker) = self.workers.get(usize::from(worker)) {
                    worker.limit(port, rates);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn an_annotation_goes_before_what_the_runtime_said() {
        let asked = Bandwidth { ingress: Some(Bits { rate: 8_000_000, burst: 4_294_967_295 }), egress: None };
        let (rates, problems) = wanted(asked, None);
        assert_eq!(rates, [Some(Rate { bytes_per_second: 1_000_000, burst: 1_000_000 }), None]);
        assert!(problems.is_empty());
        let annotations = labels(&[(ANNOTATIONS[0], "80M"), (ANNOTATIONS[1], "8k")]);
        let (rates, _) = wanted(asked, Some(&annotations));
        assert_eq!(rates[0], Some(Rate { bytes_per_second: 10_000_000, burst: 500_000 }));
        assert_eq!(rates[1], Some(Rate { bytes_per_second: 1000, burst: LEAST_BURST }));
    }

    #[test]
    fn an_annotation_that_cannot_be_read_keeps_what_was_and_is_told() {
        let asked = Bandwidth { ingress: Some(Bits { rate: 8_000_000, burst: 0 }), egress: None };
        let (rates, problems) = wanted(asked, Some(&labels(&[(ANNOTATIONS[0], "fast")])));
        assert_eq!(rates[0].map(|r| r.bytes_per_second), Some(1_000_000));
        assert!(problems[0].0 == ANNOTATIONS[0] && problems[0].1.contains("fast"));
    }
}
