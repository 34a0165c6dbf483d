//! The registry: one JSON file per running sandbox in a directory that only its owner can enter.
//!
//! A file is current while the process that it names lives and is the one that wrote it (its start time is the same).
//! Others are left over from a supervisor that was killed; whoever meets one removes it. Files appear and change by link
//! and rename, so that a reader sees a whole one; changes of the set are made under a lock of the directory.

use super::lifecycle::State;
use crate::sandbox::failure::{Failure, Status};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, linkat, mkdir, open, openat, renameat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest file that is read.
const MAX_LEN: u64 = 256 << 10;

/// A running sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name; that of the file.
    pub name: String,
    /// Process id of the supervisor.
    pub pid: i32,
    /// When the supervisor started, in clock ticks since boot.
    pub start_time: u64,
    /// Process id of the network worker.
    pub worker: i32,
    /// The command with its arguments; empty for a link that was attached to.
    pub command: Vec<String>,
    /// The guest's interface.
    pub interface: String,
    /// The guest's addresses.
    pub addresses: Vec<IpAddr>,
    /// Published ports, as on the command line.
    pub publish: Vec<String>,
    /// The supervisor's descriptors of the sandbox's user, mount and network namespaces.
    pub namespaces: Option<[i32; 3]>,
    /// Whether the network is served.
    #[serde(default)]
    pub state: State,
    /// Since when it has been in this state, in seconds since 1970; 0 since the start.
    #[serde(default)]
    pub since: u64,
    /// While it is asleep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asleep: Option<Asleep>,
    /// Name of the sandbox whose network it has joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<String>,
    /// Its command has ended; it serves those that joined it.
    #[serde(default)]
    pub ended: bool,
}

/// What is known of a sleeping network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asleep {
    /// The freeze from whose image its flows go on, in hexadecimal.
    pub generation: String,
    /// Flows whose sockets are held.
    pub held: u64,
}

impl Entry {
    /// Name of the sandbox whose processes serve its network: its own unless it joined another.
    pub fn network(&self) -> String {
        self.joined.as_ref().unwrap_or(&self.name).clone()
    }

    /// Whether the sandbox runs.
    pub fn is_current(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }

    /// How long it has been running.
    pub fn uptime(&self) -> Duration {
        let now = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
        let now: f64 = now.split_ascii_whitespace().next().and_then(|s| s.parse().ok()).unwrap_or(0.0);
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        Duration::try_from_secs_f64(now - self.start_time as f64 / ticks).unwrap_or_default()
    }
}

/// When a process started, in clock ticks since boot; `None` if it has ended.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may contain anything.
    let mut rest = stat.rsplit_once(") ")?.1.split_ascii_whitespace();
    if matches!(rest.next(), Some("Z" | "X")) {
        return None;
    }
    rest.nth(18)?.parse().ok()
}

/// The directory.
#[derive(Debug)]
pub struct Registry {
    path: PathBuf,
    dir: OwnedFd,
}

fn fail(what: &str, path: &Path, e: Errno) -> Failure {
    Failure::os(Status::File, format_args!("{what} {}", path.display()), e)
}

impl Registry {
    /// Opens this user's registry, and makes it if need be.
    ///
    /// # Errors
    ///
    /// If the directory cannot be made, or is not this user's alone.
    pub fn open() -> Result<Self, Failure> {
        let uid = rustix::process::geteuid().as_raw();
        let fallback = PathBuf::from(format!("/tmp/hibernet-{uid}"));
        let preferred = if uid == 0 {
            Some(PathBuf::from("/run/hibernet"))
        } else {
            std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_absolute()).map(|p| p.join("hibernet"))
        };
        match preferred.map(|p| Self::at(&p)) {
            Some(Ok(r)) => Ok(r),
            _ => Self::at(&fallback),
        }
    }

    /// Opens the registry in a given directory, which is made if it is missing.
    ///
    /// # Errors
    ///
    /// As [`Registry::open`].
    pub fn at(path: &Path) -> Result<Self, Failure> {
        match mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(fail("cannot make the directory", path, e)),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = open(path, flags, Mode::empty()).map_err(|e| fail("cannot open the directory", path, e))?;
        let about = rustix::fs::fstat(&dir).map_err(|e| fail("cannot look at the directory", path, e))?;
        if about.st_uid != rustix::process::geteuid().as_raw() || about.st_mode & 0o077 != 0 {
            return Err(Failure::new(
                Status::File,
                format!("{} is not a directory of this user alone (mode 0700); remove it", path.display()),
            ));
        }
        Ok(Registry { path: path.into(), dir })
    }

    /// Where the worker of a sandbox answers requests.
    pub fn control_socket(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.sock"))
    }

    /// Where the supervisor of a sandbox answers requests. No name of a sandbox makes another of our files of it.
    pub fn lifecycle_socket(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.life"))
    }

    fn lock(&self) -> Result<Locked<'_>, Failure> {
        flock(&self.dir, FlockOperation::LockExclusive).map_err(|e| fail("cannot lock", &self.path, e))?;
        Ok(Locked(self))
    }

    /// Reads an entry; `None` if there is none of that name, or it is not one.
    fn read(&self, name: &str) -> Option<Entry> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.dir, format!("{name}.json"), flags, Mode::empty()).ok()?;
        let mut text = String::new();
        File::from(fd).take(MAX_LEN).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok().filter(|e: &Entry| e.name == name)
    }

    /// The names of all files.
    fn names(&self) -> Vec<String> {
        let Ok(dir) = std::fs::read_dir(&self.path) else { return Vec::new() };
        let mut names: Vec<String> =
            dir.flatten().filter_map(|e| e.file_name().to_str()?.strip_suffix(".json").map(str::to_owned)).collect();
        names.sort();
        names
    }

    /// All running sandboxes, by name. Removes what is left of those that were killed.
    ///
    /// # Errors
    ///
    /// If the directory cannot be locked.
    pub fn list(&self) -> Result<Vec<Entry>, Failure> {
        let locked = self.lock()?;
        let mut found = Vec::new();
        for name in self.names() {
            match self.read(&name).filter(Entry::is_current) {
                Some(e) => found.push(e),
                None => locked.remove(&name),
            }
        }
        Ok(found)
    }

    /// The running sandbox of this name.
    ///
    /// # Errors
    ///
    /// [`Status::Name`] if there is none.
    pub fn get(&self, name: &str) -> Result<Entry, Failure> {
        self.read(name).filter(Entry::is_current).ok_or_else(|| {
            Failure::new(Status::Name, format!("no sandbox is named '{name}'; `hibernet list` shows those that run"))
        })
    }

    /// Enters a sandbox, under the name that it has or, if that is empty, under one made up.
    ///
    /// # Errors
    ///
    /// [`Status::Name`] if the name is taken.
    pub fn enter(self, mut entry: Entry) -> Result<Registration, Failure> {
        let locked = self.lock()?;
        let wanted = entry.name.clone();
        loop {
            if wanted.is_empty() {
                entry.name = made_up_name()?;
            }
            match locked.create(&entry) {
                Ok(()) => break,
                Err(Errno::EXIST) if self.read(&entry.name).is_none_or(|e| !e.is_current()) => locked.remove(&entry.name),
                Err(Errno::EXIST) if wanted.is_empty() => {}
                Err(Errno::EXIST) => {
                    return Err(Failure::new(
                        Status::Name,
                        format!(
                            "the name '{wanted}' is taken by a running sandbox; choose another one, or end that (`hibernet list` shows its process)"
                        ),
                    ));
                }
                Err(e) => return Err(fail("cannot write to", &self.path, e)),
            }
        }
        drop(locked);
        Ok(Registration { registry: self, entry })
    }
}

/// The right to change the set of entries.
struct Locked<'a>(&'a Registry);

impl Locked<'_> {
    fn write_temporary(&self, e: &Entry) -> Result<String, Errno> {
        let temporary = format!(".{}.tmp", std::process::id());
        let _ = unlinkat(&self.0.dir, &temporary, AtFlags::empty());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.0.dir, &temporary, flags, Mode::RUSR | Mode::WUSR)?;
        let text = serde_json::to_vec(e).map_err(|_| Errno::INVAL)?;
        File::from(fd).write_all(&text).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        Ok(temporary)
    }

    fn create(&self, e: &Entry) -> Result<(), Errno> {
        let temporary = self.write_temporary(e)?;
        let linked = linkat(&self.0.dir, &temporary, &self.0.dir, format!("{}.json", e.name), AtFlags::empty());
        let _ = unlinkat(&self.0.dir, &temporary, AtFlags::empty());
        linked
    }

    fn replace(&self, e: &Entry) -> Result<(), Errno> {
        let temporary = self.write_temporary(e)?;
        renameat(&self.0.dir, &temporary, &self.0.dir, format!("{}.json", e.name))
    }

    fn remove(&self, name: &str) {
        for suffix in ["json", "sock", "life"] {
            let _ = unlinkat(&self.0.dir, format!("{name}.{suffix}"), AtFlags::empty());
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let _ = flock(&self.0.dir, FlockOperation::Unlock);
    }
}

/// An entry of ours, removed when this is dropped.
#[derive(Debug)]
pub struct Registration {
    registry: Registry,
    entry: Entry,
}

impl Registration {
    /// The name under which it is entered.
    pub fn name(&self) -> &str {
        &self.entry.name
    }

    /// Where the worker is to answer requests.
    pub fn control_socket(&self) -> PathBuf {
        self.registry.control_socket(&self.entry.name)
    }

    /// Where the supervisor is to answer requests.
    pub fn lifecycle_socket(&self) -> PathBuf {
        self.registry.lifecycle_socket(&self.entry.name)
    }

    /// Changes what is said about the sandbox, but not its name.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn update(&mut self, change: impl FnOnce(&mut Entry)) -> Result<(), Failure> {
        let name = self.entry.name.clone();
        change(&mut self.entry);
        self.entry.name = name;
        let locked = self.registry.lock()?;
        locked.replace(&self.entry).map_err(|e| fail("cannot write to", &self.registry.path, e))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // A process forked off this one must not undo what it only has a copy of.
        if self.entry.pid == rustix::process::getpid().as_raw_nonzero().get()
            && let Ok(locked) = self.registry.lock()
        {
            locked.remove(&self.entry.name);
        }
    }
}

/// Eight hexadecimal digits, the first a letter.
fn made_up_name() -> Result<String, Failure> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Failure::os(Status::Internal, "no randomness for a name", e))?;
    // 0xc, 0xd, 0xe or 0xf in front.
    Ok(format!("{:08x}", u32::from_be_bytes(bytes) | 0xc000_0000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use vmm_sys_util::tempdir::TempDir;

    fn entry(name: &str) -> Entry {
        let pid = std::process::id() as i32;
        Entry {
            name: name.into(),
            pid,
            start_time: start_time(pid).unwrap(),
            worker: 1,
            command: vec!["a".into()],
            interface: "eth0".into(),
            addresses: Vec::new(),
            publish: Vec::new(),
            namespaces: None,
            state: State::Running,
            since: 0,
            asleep: None,
            joined: None,
            ended: false,
        }
    }

    #[test]
    fn entries_come_and_go() {
        let dir = TempDir::new().unwrap();
        let at = || Registry::at(&dir.as_path().join("r")).unwrap();
        let mut one = at().enter(entry("one")).unwrap();
        let made_up = at().enter(entry("")).unwrap();
        assert!(made_up.name().starts_with(|c: char| c.is_ascii_lowercase()), "{}", made_up.name());
        assert_eq!(at().enter(entry("one")).unwrap_err().status, Status::Name);
        one.update(|e| e.worker = 7).unwrap();
        assert_eq!(at().get("one").unwrap().worker, 7);
        assert_eq!(at().list().unwrap().len(), 2);
        drop(one);
        assert_eq!(at().get("one").unwrap_err().status, Status::Name);
        drop(made_up);
        assert_eq!(std::fs::read_dir(dir.as_path().join("r")).unwrap().count(), 0);
    }

    #[test]
    fn stale_entries_are_recognised_and_removed() {
        let dir = TempDir::new().unwrap();
        let file = |name: &str| dir.as_path().join(name);
        std::fs::set_permissions(dir.as_path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let at = || Registry::at(dir.as_path()).unwrap();
        let mut old = entry("web");
        old.start_time -= 1;
        std::fs::write(file("web.json"), serde_json::to_vec(&old).unwrap()).unwrap();
        std::fs::write(file("web.sock"), "").unwrap();
        std::fs::write(file("broken.json"), "{").unwrap();
        assert!(at().get("web").is_err());
        let web = at().enter(entry("web")).unwrap();
        assert_eq!(at().list().unwrap().iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["web"]);
        assert!(!file("broken.json").exists() && !file("web.sock").exists());
        drop(web);
    }

    #[test]
    fn directories_that_others_can_use_are_refused() {
        let dir = TempDir::new().unwrap();
        std::fs::set_permissions(dir.as_path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let e = Registry::at(dir.as_path()).unwrap_err();
        assert!(e.message.contains("0700"), "{e}");
        std::fs::set_permissions(dir.as_path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let link = dir.as_path().join("link");
        std::os::unix::fs::symlink(dir.as_path(), &link).unwrap();
        assert!(Registry::at(&link).is_err());
    }
}
