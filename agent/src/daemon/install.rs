//! What the container runtime finds on the host: the plugin, and the network configuration that names it.
//!
//! The plugin goes first; the configuration follows once a pod could be added, since a runtime takes it as the sign that the
//! network is up. Each appears whole (written aside, synced, renamed), and what was put there is noted before, so that
//! `sluiced cleanup` takes away just that. Source: CNI specification 1.1.0, section 1 (`cniVersions`, capabilities).

use super::control::Control;
use super::host::Notes;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sluice_ctrl::config::{CniInstall, Config, Source};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const PLUGIN: &str = "sluice-cni";
/// How the problems of this file begin.
const ABOUT: &str = "CNI configuration";

/// What was put on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// The network configuration.
    pub conflist: PathBuf,
    /// The plugin, where there was none before.
    pub plugin: Option<PathBuf>,
}

/// The network configuration. Runtimes that know `cniVersions` take the newest, others the one that all know.
fn conflist(config: &Config) -> Vec<u8> {
    let document = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": "sluicegate",
        "plugins": [{
            "type": PLUGIN,
            "socket": config.socket,
            "capabilities": { "portMappings": true, "bandwidth": true, "ips": true, "mac": true },
        }],
    });
    format!("{document:#}\n").into_bytes()
}

/// Whether this configuration wants it at all.
pub fn is_wanted(config: &Config) -> bool {
    match config.cni.install {
        CniInstall::Always => true,
        CniInstall::Never => false,
        CniInstall::Auto => matches!(config.source, Source::Kubernetes { .. }),
    }
}

fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // A runtime reads what ends in .conf, .conflist or .json.
    let aside = folder.join(format!(".{name}.new"));
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        let _ = fs::remove_file(&aside);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Puts plugin and configuration in place; `source` is the plugin that came with the agent. Where none did, somebody else
/// must have put it there (an init container, a package).
fn install(config: &Config, notes: &mut Notes, source: &Path) -> Result<()> {
    let conflist_path = config.cni.conf_dir.join(&config.cni.conf_name);
    let plugin_path = config.cni.bin_dir.join(PLUGIN);
    let plugin = match fs::read(source) {
        Err(error) if error.kind() == ErrorKind::NotFound && plugin_path.exists() => None,
        read => Some(read.with_context(|| format!("cannot read the plugin {}", source.display()))?),
    };
    let ours = notes.found.cni.as_ref().and_then(|i| i.plugin.as_ref()) == Some(&plugin_path);
    let made = (ours || !plugin_path.exists()).then(|| plugin_path.clone());
    let installed = Installed { conflist: conflist_path.clone(), plugin: made };
    if let Some(old) = notes.found.cni.clone().filter(|old| *old != installed) {
        remove(&old)?;
    }
    if notes.found.cni.as_ref() != Some(&installed) {
        notes.found.cni = Some(installed);
        notes.save()?;
    }
    if let Some(plugin) = plugin {
        put(&plugin_path, &plugin, 0o755)?;
    }
    put(&conflist_path, &conflist(config), 0o644)
}

/// Takes away what was put on the host; what is gone already is fine.
pub fn remove(installed: &Installed) -> Result<()> {
    for path in [Some(&installed.conflist), installed.plugin.as_ref()].into_iter().flatten() {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Another configuration that a runtime would take before ours.
fn rival(config: &Config) -> Option<String> {
    let entries = fs::read_dir(&config.cni.conf_dir).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let read =
        |name: &String| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end)) && !name.starts_with('.');
    names.filter(read).filter(|name| *name < config.cni.conf_name).min()
}

impl Control {
    /// Puts the plugin and the configuration on the host as soon as a pod could be added.
    pub fn install_cni(&mut self) {
        if self.cni_installed || !is_wanted(&self.config) || self.not_ready().is_some() {
            return;
        }
        self.cni_installed = true;
        self.machine_problems.retain(|p| !p.starts_with(ABOUT));
        let source = std::env::current_exe().map(|exe| exe.with_file_name(PLUGIN)).unwrap_or_else(|_| PLUGIN.into());
        match install(&self.config, &mut self.notes, &source) {
            Ok(()) => {
                tracing::info!(folder = %self.config.cni.conf_dir.display(), "the container runtime has our configuration");
                if let Some(other) = rival(&self.config) {
                    let folder = self.config.cni.conf_dir.display();
                    self.machine_problems.push(format!("{ABOUT}: {folder}/{other} goes before ours; remove it"));
                }
            }
            Err(error) => {
                tracing::error!("the container runtime has no configuration of ours: {error:#}");
                self.machine_problems.push(format!("{ABOUT}: {error:#}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        config: Config,
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("plugin"), "new").unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        let mut config = Config::builtin("node-a");
        config.cni.conf_dir = dir.path().join("net.d");
        config.cni.bin_dir = dir.path().join("bin");
        Fixture { dir, config }
    }

    impl Fixture {
        fn notes(&self) -> Notes {
            Notes::open(&self.dir.path().join("state")).unwrap()
        }

        fn install(&self) {
            install(&self.config, &mut self.notes(), &self.dir.path().join("plugin")).unwrap();
        }

        fn list(&self, folder: &str) -> Vec<String> {
            let names = fs::read_dir(self.dir.path().join(folder)).unwrap();
            names.map(|n| n.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    #[test]
    fn what_was_put_on_the_host_is_all_that_is_taken_away() {
        let f = fixture();
        f.install();
        f.install();
        assert_eq!(
            (f.list("net.d"), f.list("bin")),
            (vec!["10-sluicegate.conflist".into()], vec!["sluice-cni".into()])
        );
        let document: serde_json::Value =
            serde_json::from_slice(&fs::read(f.dir.path().join("net.d/10-sluicegate.conflist")).unwrap()).unwrap();
        assert_eq!(document["plugins"][0]["capabilities"]["portMappings"], true);
        fs::write(f.dir.path().join("net.d/99-other.conflist"), "{}").unwrap();
        let installed = f.notes().found.cni.unwrap();
        remove(&installed).unwrap();
        remove(&installed).unwrap();
        assert_eq!(f.list("net.d"), ["99-other.conflist"]);
        assert!(f.list("bin").is_empty());
    }

    #[test]
    fn a_plugin_that_was_there_is_brought_up_to_date_and_stays() {
        let f = fixture();
        fs::create_dir(f.dir.path().join("bin")).unwrap();
        fs::write(f.dir.path().join("bin/sluice-cni"), "old").unwrap();
        f.install();
        assert_eq!(fs::read(f.dir.path().join("bin/sluice-cni")).unwrap(), b"new");
        remove(&f.notes().found.cni.unwrap()).unwrap();
        assert_eq!(f.list("bin"), ["sluice-cni"]);
    }

    #[test]
    fn without_a_plugin_of_its_own_the_agent_takes_the_one_that_is_there() {
        let f = fixture();
        fs::remove_file(f.dir.path().join("plugin")).unwrap();
        assert!(install(&f.config, &mut f.notes(), &f.dir.path().join("plugin")).is_err());
        assert!(!f.dir.path().join("net.d").exists(), "no configuration without a plugin");
        fs::create_dir(f.dir.path().join("bin")).unwrap();
        fs::write(f.dir.path().join("bin/sluice-cni"), "theirs").unwrap();
        f.install();
        assert_eq!(fs::read(f.dir.path().join("bin/sluice-cni")).unwrap(), b"theirs");
        assert_eq!(f.notes().found.cni.unwrap().plugin, None);
    }

    #[test]
    fn a_configuration_that_goes_first_is_named() {
        let f = fixture();
        f.install();
        assert_eq!(rival(&f.config), None);
        for name in ["05-flannel.conflist", ".01-hidden.conflist", "00-notes.txt", "20-later.conf"] {
            fs::write(f.dir.path().join("net.d").join(name), "{}").unwrap();
        }
        assert_eq!(rival(&f.config).as_deref(), Some("05-flannel.conflist"));
    }

    #[test]
    fn without_an_api_server_nothing_is_installed_unless_asked_for() {
        let mut config = Config::builtin("node-a");
        assert!(is_wanted(&config));
        config.source = Source::Manifests { path: "/x".into() };
        assert!(!is_wanted(&config));
        config.cni.install = CniInstall::Always;
        assert!(is_wanted(&config));
        config.cni.install = CniInstall::Never;
        assert!(!is_wanted(&config));
    }
}
