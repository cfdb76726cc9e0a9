//! The dead man's switch: after the uplink was attached to, what the node cannot live without must be reachable through it.
//!
//! A thread of its own connects again and again. The first connection that comes about within the time allowed ends the
//! watch; none, and everything is put back, said in status and log, and tried again after a while that doubles. What was not
//! reachable before either is not our doing, and nothing is watched then: a node that starts without its API server goes
//! on with its last good state.

use super::control::Link;
use sluice_ctrl::config::{Config, GuardCheck, Source};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// How long one connection may take before the uplink is attached to: the start waits for it.
const BEFORE: Duration = Duration::from_millis(300);
/// The same afterwards, and the longest pause between two.
const AFTER: Duration = Duration::from_secs(2);
/// Longest pause before the uplink is taken again.
const LONGEST: Duration = Duration::from_secs(600);

/// A watch that has not begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    target: String,
    after: Duration,
}

impl Guard {
    /// Looks whether there is anything to watch; to be called before the uplink is attached to.
    pub fn before(config: &Config) -> Option<Guard> {
        let target = target(config)?;
        if reach(&target, BEFORE).is_none() {
            tracing::warn!(target, "not reachable before the uplink is attached to: nothing to watch over");
            return None;
        }
        Some(Guard { target, after: config.guard.after.duration() })
    }

    /// Watches on a thread of its own.
    pub fn watch(self, link: Link) -> std::io::Result<()> {
        std::thread::Builder::new().name("guard".into()).spawn(move || self.run(&link)).map(drop)
    }

    fn run(&self, link: &Link) {
        let mut pause = self.after;
        loop {
            if self.is_reachable_in_time() {
                tracing::info!(target = self.target, "reachable through the uplink");
                return;
            }
            let why = format!(
                "{} was not reachable through it for {:?} after it was attached to; next try in {pause:?}",
                self.target, self.after
            );
            if link.ask(move |control| control.let_go_of_uplink(why)).is_none() {
                return;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST);
            match link.ask(|control| control.take_uplink_again()) {
                None => return,
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::error!("the uplink cannot be taken again: {error:#}"),
            }
        }
    }

    fn is_reachable_in_time(&self) -> bool {
        let end = Instant::now() + self.after;
        let pause = (self.after / 20).min(AFTER);
        loop {
            if reach(&self.target, AFTER.min(self.after)).is_some() {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(pause);
        }
    }
}

/// What is watched, by configuration.
fn target(config: &Config) -> Option<String> {
    match &config.guard.check {
        GuardCheck::Off => None,
        GuardCheck::Connect(target) => Some(target.clone()),
        GuardCheck::Auto => match &config.source {
            Source::Manifests { .. } => None,
            Source::Kubernetes { kubeconfig: Some(path) } => sluice_kube::server_of(path)
                .inspect_err(|error| tracing::warn!(%error, "nothing is watched over; name it in guard.check"))
                .ok(),
            Source::Kubernetes { kubeconfig: None } => of_the_pod(|name| std::env::var(name).ok()),
        },
    }
}

/// Where a pod's environment says that the API server is.
fn of_the_pod(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let host = variable("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty())?;
    let port = variable("KUBERNETES_SERVICE_PORT").filter(|port| !port.is_empty()).unwrap_or_else(|| "443".to_owned());
    Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

fn reach(target: &str, patience: Duration) -> Option<()> {
    let addresses = target.to_socket_addrs().ok()?;
    addresses.into_iter().find_map(|address| TcpStream::connect_timeout(&address, patience).ok()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn config(check: GuardCheck) -> Config {
        let mut config = Config::builtin("node-a");
        config.source = Source::Manifests { path: "/x".into() };
        config.guard.check = check;
        config
    }

    #[test]
    fn what_is_not_reachable_before_is_not_watched() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap().to_string();
        assert_eq!(
            Guard::before(&config(GuardCheck::Connect(target.clone()))),
            Some(Guard { target: target.clone(), after: Duration::from_secs(60) })
        );
        drop(listener);
        assert_eq!(Guard::before(&config(GuardCheck::Connect(target))), None);
    }

    #[test]
    fn the_api_server_is_known_from_a_kubeconfig_or_else_from_the_pods_environment() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        std::fs::write(
            &path,
            "{apiVersion: v1, kind: Config, current-context: x, contexts: [{name: x, context: {cluster: x, user: x}}], \
             clusters: [{name: x, cluster: {server: 'https://192.0.2.10:6443'}}], users: [{name: x, user: {}}]}",
        )
        .unwrap();
        let mut config = config(GuardCheck::Auto);
        config.source = Source::Kubernetes { kubeconfig: Some(path.clone()) };
        assert_eq!(target(&config).as_deref(), Some("192.0.2.10:6443"));
        std::fs::write(&path, "{").unwrap();
        assert_eq!(target(&config), None);
        let pod = |host: &'static str, port: Option<&'static str>| {
            of_the_pod(move |name| if name.ends_with("HOST") { Some(host) } else { port }.map(str::to_owned))
        };
        assert_eq!(pod("fd00::1", Some("6443")).as_deref(), Some("[fd00::1]:6443"));
        assert_eq!(pod("10.96.0.1", None).as_deref(), Some("10.96.0.1:443"));
        assert_eq!(pod("", None), None);
    }

    #[test]
    fn without_an_api_server_nothing_is_watched_unless_asked_for() {
        assert_eq!(target(&config(GuardCheck::Auto)), None);
        assert_eq!(target(&config(GuardCheck::Off)), None);
        let named = GuardCheck::Connect("[fd00::1]:6443".into());
        assert_eq!(target(&config(named)).as_deref(), Some("[fd00::1]:6443"));
    }
}
