//! DELs and GCs that found no agent: notes in a folder beside the agent's socket, worked off when the agent starts.
//!
//! A runtime must be able to remove a pod while `sluiced` is away, and must not be told "done" unless it will be. So the
//! shim writes the request into `<folder of the socket>/pending-del/` and the agent does it later.
//!
//! The order closes the gap between the two: the agent first listens, then reads the folder; the shim first writes, then
//! tries to connect once more. Whatever the interleaving, one of them sees the other. Doing a DEL twice is harmless.
//! Of GCs the newest counts, and only for what was there when it was asked for: the note says when.
//! Invariant: a note is whole or not there (written aside, synced, renamed).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::protocol::{CniRequest, Verb};

/// The folder's name, beside the socket.
pub const FOLDER: &str = "pending-del";

/// The file of a waiting GC; a DEL's has an `@` in its name.
const GC: &str = "gc.json";

/// The folder of waiting DELs and GCs of one agent.
#[derive(Clone, Debug)]
pub struct PendingDels {
    folder: PathBuf,
}

/// One note: a request that waits, or the reason why a file there cannot be read as one.
#[derive(Debug)]
pub struct Note {
    /// The file.
    pub path: PathBuf,
    /// DEL or GC.
    pub verb: Verb,
    /// When it was written.
    pub written: SystemTime,
    /// The request, as the shim would have sent it.
    pub request: Result<CniRequest, io::Error>,
}

impl PendingDels {
    /// The folder beside `socket`.
    pub fn beside(socket: &Path) -> Self {
        Self { folder: socket.parent().unwrap_or(Path::new("/")).join(FOLDER) }
    }

    /// Leaves a note of a DEL or a GC and returns its file. The same attachment has one note however often it is deleted,
    /// and all GCs together have one.
    pub fn leave(&self, verb: Verb, request: &CniRequest) -> io::Result<PathBuf> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let name = match verb {
            Verb::Gc => GC.to_owned(),
            _ => format!("{}@{}.json", request.container_id, request.ifname),
        };
        let path = self.folder.join(&name);
        let aside = self.folder.join(format!(".{name}.{}", std::process::id()));
        let written = write_whole(&aside, &serde_json::to_vec(request)?).and_then(|()| fs::rename(&aside, &path));
        if let Err(error) = written {
            // The first error is the one to tell; the half-written file is not a note either way.
            let _ = fs::remove_file(&aside);
            return Err(error);
        }
        File::open(&self.folder)?.sync_all()?;
        Ok(path)
    }

    /// Every note, in the order of the files' names. An absent folder is an empty one.
    pub fn notes(&self) -> io::Result<Vec<Note>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut paths = entries.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
        paths.retain(|path| path.extension().is_some_and(|e| e == "json"));
        paths.sort();
        let read = |path: &Path| Ok(serde_json::from_slice(&fs::read(path)?)?);
        let note = |path: PathBuf| Note {
            verb: if path.ends_with(GC) { Verb::Gc } else { Verb::Del },
            written: fs::metadata(&path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH),
            request: read(&path),
            path,
        };
        Ok(paths.into_iter().map(note).collect())
    }

    /// Takes the folder away with all that is in it: there will be no agent to work it off.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Takes a note away after what it asks for is done. One that is gone already is fine.
    pub fn done(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::CniVersion;

    fn request(container_id: &str) -> CniRequest {
        CniRequest {
            cni_version: CniVersion::V1_1_0,
            container_id: container_id.into(),
            netns: String::new(),
            ifname: "eth0".into(),
            args: Default::default(),
            config: serde_json::json!({"name": "sluicegate"}),
        }
    }

    #[test]
    fn a_note_reads_back_and_goes_when_done() {
        let dir = tempfile::tempdir().unwrap();
        let pending = PendingDels::beside(&dir.path().join("run/sluiced.sock"));
        assert!(pending.notes().unwrap().is_empty());
        pending.leave(Verb::Del, &request("b")).unwrap();
        pending.leave(Verb::Del, &request("a")).unwrap();
        pending.leave(Verb::Del, &request("a")).unwrap();
        let notes = pending.notes().unwrap();
        let ids: Vec<_> = notes.iter().map(|n| n.request.as_ref().unwrap().container_id.clone()).collect();
        assert_eq!(ids, ["a", "b"]);
        assert_eq!(notes[0].request.as_ref().unwrap(), &request("a"));
        for note in &notes {
            pending.done(&note.path).unwrap();
            pending.done(&note.path).unwrap();
        }
        assert!(pending.notes().unwrap().is_empty());
    }

    #[test]
    fn a_file_that_is_no_note_is_reported_and_a_half_written_one_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let pending = PendingDels::beside(&dir.path().join("sluiced.sock"));
        pending.leave(Verb::Del, &request("a")).unwrap();
        fs::write(dir.path().join(FOLDER).join("x@eth0.json"), "{").unwrap();
        fs::write(dir.path().join(FOLDER).join(".y@eth0.json.77"), "{").unwrap();
        let notes = pending.notes().unwrap();
        assert_eq!(notes.len(), 2);
        assert!(notes[0].request.is_ok() && notes[1].request.is_err());
    }

    #[test]
    fn of_several_gcs_the_last_is_noted_and_told_apart_from_dels() {
        let dir = tempfile::tempdir().unwrap();
        let pending = PendingDels::beside(&dir.path().join("sluiced.sock"));
        pending.leave(Verb::Del, &request("gc")).unwrap();
        for list in [serde_json::json!([]), serde_json::json!([{"containerID": "a", "ifname": "eth0"}])] {
            let config = serde_json::json!({ "cni.dev/valid-attachments": list });
            pending.leave(Verb::Gc, &CniRequest { config, ..request("") }).unwrap();
        }
        let notes = pending.notes().unwrap();
        assert_eq!(notes.iter().map(|n| n.verb).collect::<Vec<_>>(), [Verb::Gc, Verb::Del]);
        assert_eq!(notes[0].request.as_ref().unwrap().valid_attachments().unwrap().len(), 1);
        assert!(notes[0].written.elapsed().unwrap().as_secs() < 60);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(PendingDels::beside(&dir.path().join("file/sluiced.sock")).leave(Verb::Del, &request("a")).is_err());
        assert!(PendingDels::beside(&dir.path().join("s.sock")).leave(Verb::Del, &request(&"a".repeat(300))).is_err());
    }
}
