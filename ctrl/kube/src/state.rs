//! The last good state on disk: what a start without an API server begins with.
//!
//! One file of lines: a head, the stripped objects, a tail with their number. It is written beside its place, flushed and
//! renamed, so that a file is whole or not there; one that is not whole is not used. Written by a thread of its own, at most
//! every [`INTERVAL`], and never more often than a twentieth of the time.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice_ctrl::import::live::Delta;
use sluice_ctrl::source::{Identified, Origin, RawObject, identify};

/// Shortest time between two writes.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// The form of the file; another one is not read.
const FORM: &str = "sluicegate-objects/1";

#[derive(Serialize, Deserialize)]
struct Head {
    form: String,
    node: String,
    /// Seconds since 1970.
    written: u64,
}

#[derive(Serialize, Deserialize)]
struct Tail {
    objects: usize,
}

/// A state that was found.
#[derive(Debug)]
pub struct Saved {
    /// When it was written.
    pub written: SystemTime,
    /// Its objects.
    pub deltas: Vec<Delta>,
}

impl Saved {
    /// How long ago it was written.
    pub fn age(&self) -> Duration {
        self.written.elapsed().unwrap_or_default()
    }
}

/// Where the state of a state folder lies.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("objects.jsonl")
}

/// Writes a state.
pub fn save(path: &Path, node: &str, texts: &[Arc<[u8]>]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let written = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    {
        let mut file = BufWriter::with_capacity(1 << 18, File::create(&beside)?);
        serde_json::to_writer(&mut file, &Head { form: FORM.to_owned(), node: node.to_owned(), written })?;
        for text in texts {
            file.write_all(b"\n")?;
            file.write_all(text)?;
        }
        file.write_all(b"\n")?;
        serde_json::to_writer(&mut file, &Tail { objects: texts.len() })?;
        file.write_all(b"\n")?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    }
    std::fs::rename(&beside, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Reads the state of this node; none where there is none. A file that is not whole or not ours is an error.
pub fn load(path: &Path, node: &str) -> io::Result<Option<Saved>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut lines = BufReader::with_capacity(1 << 18, file).lines();
    let head: Head = serde_json::from_str(&lines.next().ok_or_else(|| bad("it is empty"))??)?;
    if head.form != FORM {
        return Err(bad("it has another form"));
    }
    if head.node != node {
        return Err(bad("it is of another node"));
    }
    let mut lines: Vec<String> = lines.collect::<io::Result<_>>()?;
    let tail: Tail = lines.pop().and_then(|l| serde_json::from_str(&l).ok()).ok_or_else(|| bad("it is cut short"))?;
    if tail.objects != lines.len() {
        return Err(bad("objects are missing"));
    }
    let mut deltas = Vec::with_capacity(lines.len());
    for line in lines {
        let value: Value = serde_json::from_str(&line)?;
        let Ok(Identified::Key(key)) = identify(&value) else { return Err(bad("a line is not an object")) };
        deltas.push(Delta { key, object: Some(Arc::new(RawObject { value, origin: Origin::ApiServer })) });
    }
    Ok(Some(Saved { written: UNIX_EPOCH + Duration::from_secs(head.written), deltas }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn texts(count: usize) -> Vec<Arc<[u8]>> {
        let pod = |n: usize| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{n}"), "namespace": "x"}});
        (0..count).map(|n| pod(n).to_string().into_bytes().into()).collect()
    }

    #[test]
    fn what_was_saved_is_what_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        assert!(load(&path, "n").unwrap().is_none());
        save(&path, "n", &texts(3)).unwrap();
        save(&path, "n", &texts(2)).unwrap();
        let saved = load(&path, "n").unwrap().unwrap();
        assert_eq!(saved.deltas.iter().map(|d| d.key.name.as_str()).collect::<Vec<_>>(), ["p0", "p1"]);
        assert!(saved.age() < Duration::from_secs(60));
        assert!(load(&path, "other").is_err());
        save(&path, "n", &[]).unwrap();
        assert!(load(&path, "n").unwrap().unwrap().deltas.is_empty());
    }

    #[test]
    fn a_file_that_is_not_whole_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        save(&path, "n", &texts(3)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 1, whole.len() / 2, whole.len() - 3] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(load(&path, "n").is_err(), "{length} bytes");
        }
        let text = String::from_utf8(whole).unwrap();
        let missing: Vec<&str> = text.lines().enumerate().filter(|(n, _)| *n != 2).map(|(_, l)| l).collect();
        std::fs::write(&path, missing.join("\n")).unwrap();
        assert!(load(&path, "n").is_err());
    }
}
