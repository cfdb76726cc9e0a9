//! A folder of manifests as an object set: every `*.yaml`, `*.yml` and `*.json` below it.
//!
//! Owner: the control thread. A scan compares each file's identity (device, inode, size, times) with the last one and
//! reads what changed. Invariants: a file that cannot be read, does not parse, or was cut to nothing keeps the objects
//! it last gave, with a problem that stands until it is mended; a deleted file deletes its objects; of two files with
//! one object the first path wins. Links are followed, so that a mounted ConfigMap, which swaps a link, works; names
//! that start with `..` (its inner folders) or `.#` (an editor's locks) are left out.
//! Cost: one stat per file and scan.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::document::{self, FileContent, MAX_BYTES, SourceProblem};
use super::{ObjectKey, ObjectSet, RawObject};

/// Folders are entered this deep; deeper ones are reported.
const MAX_DEPTH: usize = 32;
/// A file that changed this recently may change again without its times showing it, so it is read once more.
const CLOCK_GRAIN: Duration = Duration::from_millis(100);

/// All that a folder gave at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The objects of kinds that are read.
    pub objects: Arc<ObjectSet>,
    /// What could not be read, by file and line.
    pub problems: Vec<SourceProblem>,
    /// How many objects of other kinds there are, by `kind.group`.
    pub ignored: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Signature {
    fn of(metadata: &Metadata) -> Signature {
        Signature {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[derive(Debug, Default)]
struct FileState {
    signature: Option<Signature>,
    /// The times cannot tell a further change from this state: read again at the next scan.
    unsettled: bool,
    objects: BTreeMap<ObjectKey, Arc<RawObject>>,
    problems: Vec<SourceProblem>,
    ignored: BTreeMap<String, u64>,
}

/// A folder of manifests and what its files last gave.
#[derive(Debug)]
pub struct ManifestSource {
    root: PathBuf,
    files: BTreeMap<PathBuf, FileState>,
    folders: BTreeSet<PathBuf>,
    snapshot: Snapshot,
}

impl ManifestSource {
    /// Opens a folder and reads it once. Errors only where the folder itself cannot be listed; what is wrong inside it
    /// is in the snapshot's problems.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<ManifestSource> {
        let root = root.into();
        fs::read_dir(&root)?;
        let mut source =
            ManifestSource { root, files: BTreeMap::new(), folders: BTreeSet::new(), snapshot: Snapshot::default() };
        source.rescan(|_| false);
        Ok(source)
    }

    /// The folder that was opened.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the folder gave at the last scan; cheap.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.clone()
    }

    /// Every folder whose entries matter, those that links lead to included.
    pub fn folders(&self) -> &BTreeSet<PathBuf> {
        &self.folders
    }

    /// True while some file changed too recently to be sure that it was read whole.
    pub fn is_unsettled(&self) -> bool {
        self.files.values().any(|f| f.unsettled)
    }

    /// Looks for changes, and reads what changed; true where the snapshot is another one. `held` says of a file that
    /// somebody is writing it right now: it stays as it was. It is asked before a file is read and again after, so that
    /// a write which begins in between is not taken for the whole.
    pub fn rescan(&mut self, mut held: impl FnMut(&Path) -> bool) -> bool {
        let mut walk = Walk::default();
        walk.folder(&self.root, 0);
        self.files.retain(|path, _| {
            let unknown = || walk.unreadable.keys().any(|folder| path.starts_with(folder));
            walk.files.contains_key(path) || unknown() || held(path)
        });
        for (path, signature) in &walk.files {
            let state = self.files.entry(path.clone()).or_default();
            if state.signature != Some(*signature) || state.unsettled {
                state.read(path, &mut held);
            }
        }
        self.folders = walk.folders;
        let snapshot = assemble(&self.files, walk.unreadable, &self.snapshot.objects);
        let changed = snapshot != self.snapshot;
        self.snapshot = snapshot;
        changed
    }
}

impl FileState {
    fn read(&mut self, path: &Path, held: &mut impl FnMut(&Path) -> bool) {
        if held(path) {
            return;
        }
        let file = read_file(path);
        if held(path) {
            return;
        }
        match file {
            Ok((signature, settled, bytes)) => {
                self.signature = Some(signature);
                self.unsettled = !settled;
                self.take(path, document::read(path, &bytes));
            }
            Err(error) => {
                self.signature = None;
                self.unsettled = false;
                self.problems = vec![problem(path, format!("cannot be read: {error}"))];
            }
        }
    }

    /// Takes over what the file holds now, or keeps what it held where that cannot be told.
    fn take(&mut self, path: &Path, content: FileContent) {
        self.problems = content.problems;
        if content.blank && content.parsed && !self.objects.is_empty() {
            // Most likely somebody is writing it just now; removing policies on a half-done write would open them.
            let reason = "is empty: its objects are kept, delete the file to delete them";
            self.problems.push(problem(path, reason.to_owned()));
            return;
        }
        if !content.parsed {
            return;
        }
        let mut objects = BTreeMap::new();
        for (key, raw) in content.objects {
            // The same allocation for what did not change, so that it is not imported again.
            let raw = match self.objects.get(&key) {
                Some(old) if **old == raw => old.clone(),
                _ => Arc::new(raw),
            };
            objects.insert(key, raw);
        }
        if !content.complete {
            // An object whose name was lost may be any of those that are missing now.
            for (key, raw) in std::mem::take(&mut self.objects) {
                objects.entry(key).or_insert(raw);
            }
        }
        self.objects = objects;
        self.ignored = content.ignored;
    }
}

fn problem(path: &Path, reason: String) -> SourceProblem {
    SourceProblem { file: path.to_path_buf(), line: None, column: None, field: None, reason }
}

/// The bytes of a file, its identity, and whether it stood still while it was read.
fn read_file(path: &Path) -> io::Result<(Signature, bool, Vec<u8>)> {
    let file = File::open(path)?;
    let before = file.metadata()?;
    let mut bytes = Vec::new();
    (&file).take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("larger than {} MiB", MAX_BYTES >> 20)));
    }
    let after = file.metadata()?;
    let age = after.modified().ok().and_then(|m| SystemTime::now().duration_since(m).ok());
    let settled = Signature::of(&before) == Signature::of(&after) && age.is_some_and(|age| age > CLOCK_GRAIN);
    Ok((Signature::of(&before), settled, bytes))
}

/// Puts the files together; of two with one object the first path wins.
fn assemble(
    files: &BTreeMap<PathBuf, FileState>,
    unreadable: BTreeMap<PathBuf, String>,
    last: &Arc<ObjectSet>,
) -> Snapshot {
    let mut set = ObjectSet::default();
    let mut problems: Vec<SourceProblem> =
        unreadable.into_iter().map(|(folder, reason)| problem(&folder, reason)).collect();
    let mut ignored: BTreeMap<String, u64> = BTreeMap::new();
    for (path, file) in files {
        problems.extend(file.problems.iter().cloned());
        for (kind, count) in &file.ignored {
            *ignored.entry(kind.clone()).or_default() += count;
        }
        for (key, raw) in &file.objects {
            match set.objects.get(key) {
                None => drop(set.objects.insert(key.clone(), raw.clone())),
                Some(first) => {
                    let line = match raw.origin {
                        super::Origin::File { line, .. } => Some(line),
                        super::Origin::ApiServer => None,
                    };
                    let reason = format!("{key} is given by {} already, which counts", first.origin);
                    problems.push(SourceProblem { line, ..problem(path, reason) });
                }
            }
        }
    }
    problems.sort();
    let objects = if **last == set { last.clone() } else { Arc::new(set) };
    Snapshot { objects, problems, ignored }
}

/// What one walk through the folders found.
#[derive(Debug, Default)]
struct Walk {
    files: BTreeMap<PathBuf, Signature>,
    folders: BTreeSet<PathBuf>,
    unreadable: BTreeMap<PathBuf, String>,
    /// Folders on the way from the root, as device and inode: a link back to one of them is a loop.
    on_the_way: Vec<(u64, u64)>,
}

impl Walk {
    fn folder(&mut self, folder: &Path, depth: usize) {
        if let Err(error) = self.entries(folder, depth) {
            self.unreadable.insert(folder.to_path_buf(), format!("cannot be listed: {error}"));
        }
    }

    fn entries(&mut self, folder: &Path, depth: usize) -> io::Result<()> {
        let metadata = fs::metadata(folder)?;
        let identity = (metadata.dev(), metadata.ino());
        if self.on_the_way.contains(&identity) {
            return Ok(());
        }
        if depth > MAX_DEPTH {
            return Err(io::Error::other(format!("more than {MAX_DEPTH} folders deep")));
        }
        let entries = fs::read_dir(folder)?;
        self.folders.insert(folder.to_path_buf());
        self.on_the_way.push(identity);
        for entry in entries.flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if name.starts_with("..") || name.starts_with(".#") {
                continue;
            }
            // What is gone by now, or a link that leads nowhere, is not there.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if metadata.is_dir() {
                self.folder(&path, depth + 1);
            } else if metadata.is_file() && is_manifest(&path) {
                self.files.insert(path.clone(), Signature::of(&metadata));
                self.watch_target(&path, &entry);
            }
        }
        self.on_the_way.pop();
        Ok(())
    }

    /// A link's target changes in the target's folder.
    fn watch_target(&mut self, path: &Path, entry: &fs::DirEntry) {
        if entry.file_type().is_ok_and(|t| t.is_symlink())
            && let Ok(target) = fs::canonicalize(path)
            && let Some(folder) = target.parent()
        {
            self.folders.insert(folder.to_path_buf());
        }
    }
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn pod(name: &str, node: &str) -> String {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: {node}}}\n")
    }

    fn rescan(source: &mut ManifestSource) -> bool {
        source.rescan(|_| false)
    }

    fn names(source: &ManifestSource) -> Vec<String> {
        source.snapshot().objects.objects.keys().map(|k| k.name.clone()).collect()
    }

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, ManifestSource) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let source = ManifestSource::new(dir.path()).unwrap();
        (dir, source)
    }

    #[test]
    fn every_manifest_below_the_folder_counts_and_nothing_else() {
        let (_dir, source) = folder(&[
            ("a.yaml", &pod("a", "n")),
            ("deep/er/b.yml", &pod("b", "n")),
            ("c.json", r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "c"}}"#),
            ("notes.txt", "x"),
            ("a.yaml~", &pod("old", "n")),
            ("d.yaml", "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}"),
        ]);
        assert_eq!(names(&source), ["a", "b", "c"]);
        assert_eq!(source.snapshot().ignored, BTreeMap::from([("Deployment.apps".to_owned(), 1)]));
        assert_eq!(source.snapshot().problems, vec![]);
    }

    #[test]
    fn a_broken_file_keeps_its_objects_while_other_edits_go_live() {
        let (dir, mut source) = folder(&[("a.yaml", &pod("a", "n")), ("b.yaml", &pod("b", "n"))]);
        fs::write(dir.path().join("a.yaml"), "kind: [\n").unwrap();
        fs::write(dir.path().join("b.yaml"), pod("c", "n")).unwrap();
        assert!(rescan(&mut source));
        assert_eq!(names(&source), ["a", "c"]);
        assert_eq!(source.snapshot().problems.len(), 1);
        assert_eq!(source.snapshot().problems[0].file, dir.path().join("a.yaml"));
        fs::write(dir.path().join("a.yaml"), pod("d", "n")).unwrap();
        assert!(rescan(&mut source));
        assert_eq!(names(&source), ["c", "d"]);
        assert_eq!(source.snapshot().problems, vec![]);
    }

    #[test]
    fn a_deleted_file_deletes_its_objects_and_an_emptied_one_does_not() {
        let (dir, mut source) = folder(&[("a.yaml", &pod("a", "n"))]);
        fs::write(dir.path().join("a.yaml"), "").unwrap();
        assert!(rescan(&mut source));
        assert_eq!(names(&source), ["a"]);
        assert!(source.snapshot().problems[0].reason.starts_with("is empty"));
        fs::write(dir.path().join("a.yaml"), "# nothing any more\n").unwrap();
        rescan(&mut source);
        assert_eq!(names(&source), Vec::<String>::new());
        fs::write(dir.path().join("a.yaml"), pod("a", "n")).unwrap();
        rescan(&mut source);
        fs::remove_file(dir.path().join("a.yaml")).unwrap();
        rescan(&mut source);
        assert_eq!(source.snapshot(), Snapshot::default());
    }

    #[test]
    fn an_object_that_lost_its_name_is_kept() {
        let both = format!("{}---\n{}", pod("a", "n"), pod("b", "n"));
        let (dir, mut source) = folder(&[("a.yaml", &both)]);
        fs::write(dir.path().join("a.yaml"), both.replace("{name: a}", "{}").replace("nodeName: n", "nodeName: m"))
            .unwrap();
        rescan(&mut source);
        assert_eq!(names(&source), ["a", "b"]);
        assert_eq!(source.snapshot().problems.len(), 1);
    }

    #[test]
    fn of_two_files_with_one_object_the_first_path_wins() {
        let (dir, mut source) = folder(&[("b.yaml", &pod("a", "second")), ("a.yaml", &pod("a", "first"))]);
        let node = |source: &ManifestSource| {
            source.snapshot().objects.objects.values().next().unwrap().value["spec"]["nodeName"].clone()
        };
        assert_eq!(node(&source), "first");
        assert_eq!(source.snapshot().problems[0].file, dir.path().join("b.yaml"));
        assert_eq!(source.snapshot().problems[0].line, Some(1));
        fs::remove_file(dir.path().join("a.yaml")).unwrap();
        rescan(&mut source);
        assert_eq!(node(&source), "second");
        assert_eq!(source.snapshot().problems, vec![]);
    }

    #[test]
    fn an_atomic_rename_and_an_edit_of_the_same_length_are_seen() {
        let (dir, mut source) = folder(&[("a.yaml", &pod("a", "n"))]);
        fs::write(dir.path().join("a.yaml"), pod("b", "n")).unwrap();
        assert!(rescan(&mut source));
        assert_eq!(names(&source), ["b"]);
        fs::write(dir.path().join("tmp"), pod("c", "n")).unwrap();
        fs::rename(dir.path().join("tmp"), dir.path().join("a.yaml")).unwrap();
        assert!(rescan(&mut source));
        assert_eq!(names(&source), ["c"]);
        assert!(!rescan(&mut source), "nothing changed");
    }

    #[test]
    fn a_mounted_config_map_is_read_once_and_its_swap_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        for (version, name) in [("..1", "a"), ("..2", "b")] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("x.yaml"), pod(name, "n")).unwrap();
        }
        symlink("..1", dir.path().join("..data")).unwrap();
        symlink("..data/x.yaml", dir.path().join("x.yaml")).unwrap();
        let mut source = ManifestSource::new(dir.path()).unwrap();
        assert_eq!(names(&source), ["a"]);
        assert_eq!(source.snapshot().problems, vec![]);
        symlink("..2", dir.path().join("..tmp")).unwrap();
        fs::rename(dir.path().join("..tmp"), dir.path().join("..data")).unwrap();
        assert!(rescan(&mut source));
        assert_eq!(names(&source), ["b"]);
    }

    #[test]
    fn loops_of_links_end_and_dead_links_are_not_there() {
        let (dir, mut source) = folder(&[("a.yaml", &pod("a", "n"))]);
        symlink(dir.path(), dir.path().join("again")).unwrap();
        symlink("nowhere.yaml", dir.path().join("dead.yaml")).unwrap();
        rescan(&mut source);
        assert_eq!(names(&source), ["a"]);
        assert_eq!(source.snapshot().problems, vec![]);
    }

    #[test]
    fn a_folder_that_vanishes_keeps_everything() {
        let (dir, mut source) = folder(&[("in/a.yaml", &pod("a", "n"))]);
        fs::rename(dir.path(), dir.path().with_extension("gone")).unwrap();
        assert!(rescan(&mut source));
        assert_eq!(names(&source), ["a"]);
        assert_eq!(source.snapshot().problems.len(), 1);
        fs::rename(dir.path().with_extension("gone"), dir.path()).unwrap();
        assert!(rescan(&mut source));
        assert_eq!(source.snapshot().problems, vec![]);
    }

    #[test]
    fn a_file_that_is_being_written_stays_as_it_was() {
        let (dir, mut source) = folder(&[("a.yaml", &pod("a", "n"))]);
        let path = dir.path().join("a.yaml");
        fs::write(&path, pod("b", "n")).unwrap();
        assert!(!source.rescan(|held| held == path));
        assert_eq!(names(&source), ["a"]);
        assert!(rescan(&mut source));
        assert_eq!(names(&source), ["b"]);
    }

    #[test]
    fn objects_that_did_not_change_keep_their_allocation() {
        let both = format!("{}---\n{}", pod("a", "n"), pod("b", "n"));
        let (dir, mut source) = folder(&[("a.yaml", &both)]);
        let first = source.snapshot();
        fs::write(dir.path().join("a.yaml"), both.replace("{name: b}", "{name: c}")).unwrap();
        rescan(&mut source);
        let second = source.snapshot();
        let get = |s: &Snapshot| s.objects.objects.values().next().unwrap().clone();
        assert!(Arc::ptr_eq(&get(&first), &get(&second)));
    }
}
