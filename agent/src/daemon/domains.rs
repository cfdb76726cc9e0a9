//! What pods were told of domain names, on disk: a restarted agent lets them go on connecting.
//!
//! Owner: the control thread. Workers learn; this thread asks them when they have learned, at most once a second, and writes the
//! file whole to a temporary one that is renamed. Ends are in seconds since 1970, names and pods by name, so that the file means
//! the same to a process with other port numbers, workers and clock.

use super::control::Control;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sluice_engine::learned::Lesson;
use sluice_tables::DomainId;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const FILE: &str = "domains.json";
const VERSION: u32 = 1;
/// Between two looks at what workers have learned.
const PAUSE: Duration = Duration::from_secs(1);
const SECOND: u64 = 1_000_000_000;

#[derive(Debug, Serialize, Deserialize)]
struct Known {
    pod: String,
    address: IpAddr,
    name: String,
    /// New connections may use the address up to then, connections that are there up to the second.
    until: u64,
    held_until: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    version: u32,
    known: Vec<Known>,
}

/// What was last written.
#[derive(Debug)]
pub struct Kept {
    learned: u64,
    looked: Instant,
}

impl Default for Kept {
    fn default() -> Self {
        Kept { learned: 0, looked: Instant::now() }
    }
}

impl Control {
    /// Writes down what workers have learned since the last time.
    pub fn keep_domains(&mut self) {
        if self.domains.looked.elapsed() < PAUSE {
            return;
        }
        self.domains.looked = Instant::now();
        let learned: u64 = self.workers.iter().map(|w| w.counters.domains[0].get()).sum();
        if learned == self.domains.learned {
            return;
        }
        match self.write_domains() {
            Ok(()) => self.domains.learned = learned,
            Err(error) => tracing::warn!("cannot write down what was learned of domain names: {error:#}"),
        }
    }

    /// The last word, where there is anything to say: how long connections keep their addresses has moved.
    pub fn write_domains_at_end(&self) -> Result<()> {
        if self.workers.iter().all(|w| w.counters.domains[0].get() + w.counters.domain_addresses.get() == 0) {
            return Ok(());
        }
        self.write_domains()
    }

    fn write_domains(&self) -> Result<()> {
        let now = Control::wall_seconds();
        let names = &self.publisher.current().tables.policy.domains;
        let mut known = Vec::new();
        for lesson in self.workers.iter().flat_map(|w| w.lessons()) {
            let (Some(pod), Some(name)) = (self.pod_of(lesson.zone), names.text(lesson.name)) else { continue };
            known.push(Known {
                pod,
                address: lesson.address.into(),
                name: name.to_owned(),
                until: now + lesson.left / SECOND,
                held_until: now + lesson.held / SECOND,
            });
        }
        known.sort_by(|a, b| (&a.pod, a.address, &a.name).cmp(&(&b.pod, b.address, &b.name)));
        let path = self.config.state_dir.join(FILE);
        let new = path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(&Document { version: VERSION, known })?)
            .with_context(|| format!("cannot write {}", new.display()))?;
        std::fs::rename(&new, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Gives workers what was learned before this process began; called when pods have their ports again.
    pub fn take_up_domains(&self) {
        let document = match read(&self.config.state_dir.join(FILE)) {
            Ok(Some(document)) => document,
            Ok(None) => return,
            // Pods ask again: nothing is open because of it.
            Err(error) => return tracing::warn!("cannot read what was learned of domain names: {error:#}"),
        };
        let now = Control::wall_seconds();
        let mut lessons: Vec<Vec<Lesson>> = vec![Vec::new(); self.workers.len()];
        for known in document.known {
            let left = known.until.saturating_sub(now).saturating_mul(SECOND);
            let held = known.held_until.saturating_sub(now).saturating_mul(SECOND);
            let pod = self.view.pods.iter().find(|(name, _)| name.to_string() == known.pod);
            let Some((_, pod)) = pod.filter(|_| left > 0 || held > 0) else { continue };
            if let Some(of_worker) = lessons.get_mut(usize::from(pod.worker)) {
                let name = DomainId::of(&known.name);
                of_worker.push(Lesson { zone: pod.port, address: known.address.into(), name, left, held });
            }
        }
        for (worker, lessons) in self.workers.iter().zip(lessons) {
            worker.take_up(lessons);
        }
    }
}

fn read(path: &Path) -> Result<Option<Document>> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let document: Document =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is not readable", path.display()))?;
    anyhow::ensure!(document.version == VERSION, "{}: version {} is not known", path.display(), document.version);
    Ok(Some(document))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_missing_is_no_error_and_one_of_another_version_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        assert!(read(&path).unwrap().is_none());
        std::fs::write(&path, r#"{"version":2,"known":[]}"#).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("version 2"));
        let known = r#"{"version":1,"known":[{"pod":"a/b","address":"192.0.2.1","name":"*.example.org","until":9,"held_until":0}]}"#;
        std::fs::write(&path, known).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().known[0].name, "*.example.org");
    }
}
