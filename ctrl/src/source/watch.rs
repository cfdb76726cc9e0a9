//! Watches a folder of manifests and hands over a new snapshot when its content changed.
//!
//! Owner: one thread of its own, which sleeps in `poll`. Source: inotify(7). A burst of events is let end (50 ms of
//! quiet, at most 200 ms), then the folder is scanned; a file that is open for writing is left for at most
//! 400 ms after the last write. A slow scan in between finds what inotify cannot see (network file systems, mapped writes); it is a
//! fast one where the kernel gives no watches.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use super::manifests::{ManifestSource, Snapshot};

/// A burst of events has ended when nothing happened for this long.
const QUIET: Duration = Duration::from_millis(50);
/// A burst is not waited for longer than this.
const BURST: Duration = Duration::from_millis(200);
/// A file that was written to and not closed is left alone for this long after the last write.
const WRITE_HOLD: Duration = Duration::from_millis(400);
/// A file that changed just before it was read is read once more after this long.
const SETTLE: Duration = Duration::from_millis(150);
/// Time between scans that no event asked for.
const RESCAN: Duration = Duration::from_secs(5);
/// The same where the kernel gives no watches.
const RESCAN_UNWATCHED: Duration = Duration::from_millis(500);

/// A watched folder; dropping it ends the watch.
#[derive(Debug)]
pub struct ManifestWatch {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl ManifestWatch {
    /// Starts to watch; `on_change` is called on the watch's thread with every snapshot that differs from the one the
    /// source had. Errors where the process has no more descriptors or threads.
    pub fn start(
        source: ManifestSource,
        on_change: impl FnMut(Snapshot) + Send + 'static,
    ) -> io::Result<ManifestWatch> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let notify = match inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC) {
            Ok(fd) => Some(fd),
            Err(error) => {
                tracing::warn!(%error, "no inotify, the manifest folder is polled");
                None
            }
        };
        let events = Events { notify, watches: BTreeMap::new(), writing: BTreeMap::new(), news: false };
        let mut watcher = Watcher { source, events, stop: stop.clone(), watched: false };
        // Before this returns, so that whatever the caller does next is seen.
        watcher.add_watches();
        let thread = std::thread::Builder::new().name("manifests".into()).spawn(move || watcher.run(on_change))?;
        Ok(ManifestWatch { stop, thread: Some(thread) })
    }
}

impl Drop for ManifestWatch {
    fn drop(&mut self) {
        if rustix::io::write(&*self.stop, &1u64.to_ne_bytes()).is_ok()
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the manifest watch had panicked");
        }
    }
}

struct Watcher {
    source: ManifestSource,
    events: Events,
    stop: Arc<OwnedFd>,
    /// Every folder has its watch.
    watched: bool,
}

/// What the kernel told.
struct Events {
    notify: Option<OwnedFd>,
    /// Watch descriptor to folder.
    watches: BTreeMap<i32, PathBuf>,
    /// Files that were written to and not closed, with the time of the last write.
    writing: BTreeMap<PathBuf, Instant>,
    /// Something was taken from the kernel since the last scan began.
    news: bool,
}

enum Woken {
    Stop,
    Events,
    Timeout,
}

impl Watcher {
    fn run(mut self, mut on_change: impl FnMut(Snapshot)) {
        loop {
            // Watches first, then the scan: what happens in between is found by the one or announced by the other.
            self.add_watches();
            self.events.read();
            self.events.news = false;
            let events = &mut self.events;
            if self.source.rescan(|path| events.is_being_written(path)) {
                on_change(self.source.snapshot());
            }
            // A folder that the scan found needs its watch, and another look at it; so does what happened meanwhile.
            let wait = match () {
                () if self.add_watches() => Duration::ZERO,
                () if self.events.news => QUIET,
                () if !self.events.writing.is_empty() || self.source.is_unsettled() => SETTLE,
                () if self.watched => RESCAN,
                () => RESCAN_UNWATCHED,
            };
            match self.wait(wait) {
                Woken::Stop => return,
                Woken::Timeout => {}
                Woken::Events => {
                    if self.wait_for_quiet() {
                        return;
                    }
                }
            }
        }
    }

    /// Waits for the end of a burst; true where the watch is to end.
    fn wait_for_quiet(&mut self) -> bool {
        let start = Instant::now();
        self.events.read();
        while let Some(left) = BURST.checked_sub(start.elapsed()) {
            match self.wait(QUIET.min(left)) {
                Woken::Stop => return true,
                Woken::Timeout => return false,
                Woken::Events => self.events.read(),
            }
        }
        false
    }

    fn wait(&self, timeout: Duration) -> Woken {
        let mut fds = vec![PollFd::new(&*self.stop, PollFlags::IN)];
        fds.extend(self.events.notify.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(_) => Woken::Timeout,
            Ok(_) if !fds[0].revents().is_empty() => Woken::Stop,
            Ok(_) => Woken::Events,
        }
    }

    /// Watches every folder of the source; true where one was new.
    fn add_watches(&mut self) -> bool {
        let Some(notify) = &self.events.notify else { return false };
        let flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR;
        let mut all = true;
        let mut new = false;
        for folder in self.source.folders() {
            match inotify::add_watch(notify, folder, flags) {
                // The kernel gives one descriptor per folder, however often it is asked.
                Ok(wd) => new |= self.events.watches.insert(wd, folder.clone()).is_none(),
                Err(error) => {
                    if self.watched {
                        tracing::warn!(%error, folder = %folder.display(), "no watch, the folder is polled");
                    }
                    all = false;
                }
            }
        }
        self.watched = all;
        new
    }
}

impl Events {
    /// Takes what the kernel has queued; it queues a write before the write returns.
    fn read(&mut self) {
        let Some(notify) = &self.notify else { return };
        let mut buffer = [MaybeUninit::<u8>::uninit(); 8192];
        let mut reader = inotify::Reader::new(notify, &mut buffer);
        while let Ok(event) = reader.next() {
            self.news = true;
            let flags = event.events();
            if flags.contains(ReadFlags::IGNORED) {
                self.watches.remove(&event.wd());
                continue;
            }
            let (Some(folder), Some(name)) = (self.watches.get(&event.wd()), event.file_name()) else { continue };
            let path = folder.join(OsStr::from_bytes(name.to_bytes()));
            if flags.contains(ReadFlags::MODIFY) {
                self.writing.insert(path, Instant::now());
            } else {
                self.writing.remove(&path);
            }
        }
    }

    /// True while a file was written to and not closed, but not for longer than [`WRITE_HOLD`] after the last write.
    fn is_being_written(&mut self, path: &Path) -> bool {
        self.read();
        self.writing.retain(|_, last| last.elapsed() < WRITE_HOLD);
        self.writing.contains_key(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write as _;
    use std::sync::mpsc::{Receiver, channel};

    fn pod(name: &str) -> String {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n")
    }

    fn watch(dir: &Path) -> (ManifestWatch, Receiver<Vec<String>>) {
        let (send, receive) = channel();
        let source = ManifestSource::new(dir).unwrap();
        let names = |s: &Snapshot| s.objects.objects.keys().map(|k| k.name.clone()).collect::<Vec<_>>();
        let watch = ManifestWatch::start(source, move |snapshot| drop(send.send(names(&snapshot)))).unwrap();
        (watch, receive)
    }

    /// Waits until a snapshot with just these names arrives.
    fn expect(receive: &Receiver<Vec<String>>, names: &[&str]) -> Duration {
        let start = Instant::now();
        loop {
            let seen = receive.recv_timeout(Duration::from_secs(4)).expect("a change in time");
            if seen == names {
                return start.elapsed();
            }
        }
    }

    #[test]
    fn edits_renames_and_deletions_are_live_in_under_a_second() {
        let dir = tempfile::tempdir().unwrap();
        let (_watch, receive) = watch(dir.path());
        let second = Duration::from_secs(1);
        fs::write(dir.path().join("a.yaml"), pod("a")).unwrap();
        assert!(expect(&receive, &["a"]) < second);
        fs::write(dir.path().join("tmp"), pod("b")).unwrap();
        fs::rename(dir.path().join("tmp"), dir.path().join("a.yaml")).unwrap();
        assert!(expect(&receive, &["b"]) < second);
        fs::create_dir(dir.path().join("new")).unwrap();
        fs::write(dir.path().join("new/c.yaml"), pod("c")).unwrap();
        assert!(expect(&receive, &["b", "c"]) < second);
        fs::remove_dir_all(dir.path().join("new")).unwrap();
        assert!(expect(&receive, &["b"]) < second);
    }

    #[test]
    fn a_file_that_is_written_piece_by_piece_is_read_when_it_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(&path, format!("{}---\n{}", pod("a"), pod("b"))).unwrap();
        let (_watch, receive) = watch(dir.path());
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(pod("a").as_bytes()).unwrap();
        file.flush().unwrap();
        assert!(receive.recv_timeout(Duration::from_millis(300)).is_err(), "half a file deletes nothing");
        file.write_all(format!("---\n{}", pod("c")).as_bytes()).unwrap();
        drop(file);
        assert!(expect(&receive, &["a", "c"]) < Duration::from_secs(1));
    }

    #[test]
    fn the_target_of_a_link_outside_the_folder_is_watched_too() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("x.yaml"), pod("a")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("x.yaml"), dir.path().join("x.yaml")).unwrap();
        let (_watch, receive) = watch(dir.path());
        fs::write(outside.path().join("x.yaml"), pod("b")).unwrap();
        assert!(expect(&receive, &["b"]) < Duration::from_secs(1));
    }
}
