//! The file of an image: written beside its target, then put in its place as a whole. Whatever happens in between, and
//! whenever the machine stops, the target is the old file or the new one.

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, flock, fstat, fsync, linkat, open, openat, renameat, statat,
    unlinkat,
};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// End of the name of a temporary.
const SUFFIX: &str = ".hibernet-tmp";
/// Bytes of the target's name that a temporary's name repeats: the rest has to fit too.
const MAX_PREFIX: usize = 200;

/// Why a file could not be replaced. The target is as it was, unless the text says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The path names no file that could be replaced.
    #[error("{path} is a directory, a device or the like; name a file, or `-` for standard output", path = path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A call failed.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// A file that is being written, to take the place of another one.
///
/// Dropped before [`Replacement::commit`] it leaves nothing, nor does one whose process is killed: the file has no name until it is whole. Where the
/// file system has no files without names, one that was left behind is removed by the next for the same target.
#[derive(Debug)]
pub struct Replacement {
    dir: OwnedFd,
    target: PathBuf,
    name: OsString,
    temporary: OsString,
    file: File,
    /// It has no name yet.
    nameless: bool,
    /// It has taken the target's place, and is not ours to remove any more.
    done: bool,
}

impl Replacement {
    /// Makes an empty file, mode 0600, beside `target`. A symbolic link stays, what it leads to is replaced.
    ///
    /// # Errors
    ///
    /// If `target` is no file, or its directory cannot be written to.
    pub fn begin(target: &Path) -> Result<Replacement, FileError> {
        let target = resolve(target)?;
        let name = target.file_name().ok_or_else(|| FileError::NotAFile { path: target.clone() })?.to_owned();
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = open(parent, flags, Mode::empty()).map_err(failed("open the directory", parent))?;
        remove_stale(&dir, &name);
        if let Some(file) = make_nameless(&dir) {
            let temporary = temporary_name(&name).map_err(failed("name a temporary beside", &target))?;
            // For the moment in which it has this name.
            let _ = flock(&file, FlockOperation::NonBlockingLockExclusive);
            return Ok(Replacement { dir, target, name, temporary, file: file.into(), nameless: true, done: false });
        }
        // Another process may take a file that is not locked yet for one that was left behind.
        loop {
            let temporary = temporary_name(&name).map_err(failed("name a temporary beside", &target))?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(&dir, &temporary, flags, Mode::RUSR | Mode::WUSR)
                .map_err(failed("make a file in the directory of", &target))?;
            // Where there are no locks nothing is taken for left behind either.
            let _ = flock(&file, FlockOperation::NonBlockingLockExclusive);
            if fstat(&file).is_ok_and(|s| s.st_nlink > 0) {
                return Ok(Replacement { dir, target, name, temporary, file: file.into(), nameless: false, done: false });
            }
        }
    }

    /// The path that will be replaced.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Puts the file in the target's place, and returns when that will last.
    ///
    /// # Errors
    ///
    /// If the disk refuses. When only the last step failed, that the directory be written, the target is the new file, but a
    /// loss of power may bring the old one back.
    pub fn commit(mut self) -> Result<(), FileError> {
        self.sync()?;
        self.rename()?;
        fsync(&self.dir).map_err(failed("write (the new file is in place already) the directory of", &self.target))
    }

    fn sync(&self) -> Result<(), FileError> {
        fsync(&self.file).map_err(failed("write", &self.target))
    }

    fn rename(&mut self) -> Result<(), FileError> {
        if self.nameless {
            // A link cannot take the place of another file.
            linkat(CWD, own_path(&self.file), &self.dir, &self.temporary, AtFlags::SYMLINK_FOLLOW)
                .map_err(failed("name", &self.target))?;
        }
        renameat(&self.dir, &self.temporary, &self.dir, &self.name).map_err(failed("replace", &self.target))?;
        self.done = true;
        Ok(())
    }
}

impl Write for Replacement {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Replacement {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.done {
            let _ = unlinkat(&self.dir, &self.temporary, AtFlags::empty());
        }
    }
}

/// A file that is in a directory without a name, if that can be.
fn make_nameless(dir: &OwnedFd) -> Option<OwnedFd> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(dir, ".", flags, Mode::RUSR | Mode::WUSR).ok()?;
    // It is named by way of /proc, which may not be there.
    statat(CWD, own_path(&file), AtFlags::empty()).is_ok().then_some(file)
}

fn own_path(file: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(Errno) -> FileError {
    move |e| FileError::System { what, path: path.into(), source: e.into() }
}

/// Where the file is or will be, with symbolic links followed.
fn resolve(target: &Path) -> Result<PathBuf, FileError> {
    match statat(CWD, target, AtFlags::empty()) {
        Ok(s) if FileType::from_raw_mode(s.st_mode) != FileType::RegularFile => Err(FileError::NotAFile { path: target.into() }),
        Ok(_) => std::fs::canonicalize(target).map_err(|source| FileError::System { what: "find", path: target.into(), source }),
        Err(Errno::NOENT) => Ok(target.into()),
        Err(e) => Err(failed("look at", target)(e)),
    }
}

/// How the names of all temporaries for a target begin.
fn prefix(name: &OsStr) -> Vec<u8> {
    let name = name.as_bytes();
    [b".", &name[..name.len().min(MAX_PREFIX)], b"."].concat()
}

fn temporary_name(name: &OsStr) -> Result<OsString, Errno> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let mut out = prefix(name);
    out.extend_from_slice(format!("{:016x}{SUFFIX}", u64::from_ne_bytes(random)).as_bytes());
    Ok(OsString::from_vec(out))
}

/// Removes temporaries whose process has ended: nobody has them locked.
fn remove_stale(dir: &OwnedFd, name: &OsStr) {
    let prefix = prefix(name);
    let Ok(entries) = Dir::read_from(dir) else { return };
    for entry in entries.flatten() {
        let found = entry.file_name();
        if !found.to_bytes().starts_with(&prefix) || !found.to_bytes().ends_with(SUFFIX.as_bytes()) {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = openat(dir, found, flags, Mode::empty()) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = unlinkat(dir, found, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::process::{Command, Stdio};
    use vmm_sys_util::tempdir::TempDir;

    const OLD: &[u8] = b"the old image";
    const NEW: &[u8] = b"a new one that is longer";

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        all.sort();
        all
    }

    #[test]
    fn the_file_is_replaced_as_a_whole() {
        let dir = TempDir::new().unwrap();
        let target = dir.as_path().join("image");
        for (old, new) in [(None, OLD), (Some(OLD), NEW)] {
            let mut r = Replacement::begin(&target).unwrap();
            r.write_all(new).unwrap();
            assert_eq!(std::fs::read(&target).ok().as_deref(), old);
            r.commit().unwrap();
            assert_eq!(std::fs::read(&target).unwrap(), new);
            assert_eq!(target.metadata().unwrap().mode() & 0o7777, 0o600);
        }
        assert_eq!(names(dir.as_path()), ["image"]);
    }

    #[test]
    fn given_up_it_leaves_nothing() {
        let dir = TempDir::new().unwrap();
        let target = dir.as_path().join("image");
        std::fs::write(&target, OLD).unwrap();
        let mut r = Replacement::begin(&target).unwrap();
        r.write_all(NEW).unwrap();
        drop(r);
        assert_eq!(names(dir.as_path()), ["image"]);
        assert_eq!(std::fs::read(&target).unwrap(), OLD);
    }

    #[test]
    fn a_link_stays_and_what_it_leads_to_is_replaced() {
        let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let (link, target) = (dir.as_path().join("current"), other.as_path().join("image"));
        std::fs::write(&target, OLD).unwrap();
        symlink(&target, &link).unwrap();
        let mut r = Replacement::begin(&link).unwrap();
        r.write_all(NEW).unwrap();
        r.commit().unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(std::fs::read(&target).unwrap(), NEW);
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let dir = TempDir::new().unwrap();
        for path in [dir.as_path(), Path::new("/dev/null"), Path::new("/")] {
            assert!(matches!(Replacement::begin(path), Err(FileError::NotAFile { .. })), "{}", path.display());
        }
        let missing = dir.as_path().join("no/such/image");
        let e = Replacement::begin(&missing).unwrap_err().to_string();
        assert!(e.contains("no/such") && e.contains("No such file"), "{e}");
        let long = dir.as_path().join("x".repeat(255));
        let mut r = Replacement::begin(&long).unwrap();
        r.write_all(NEW).unwrap();
        r.commit().unwrap();
    }

    /// Two that write to one target do not take each other's temporary for one that was left behind.
    #[test]
    fn two_at_a_time_do_not_disturb_each_other() {
        let dir = TempDir::new().unwrap();
        let target = dir.as_path().join("image");
        let mut one = Replacement::begin(&target).unwrap();
        let mut two = Replacement::begin(&target).unwrap();
        one.write_all(OLD).unwrap();
        two.write_all(NEW).unwrap();
        one.commit().unwrap();
        two.commit().unwrap();
        assert_eq!(names(dir.as_path()), ["image"]);
        assert_eq!(std::fs::read(&target).unwrap(), NEW);
    }

    /// Names of the directory in which the process of the next test works, and of the step at which it stops.
    const IN: &str = "HIBERNET_TEST_REPLACE_IN";
    const STEP: &str = "HIBERNET_TEST_REPLACE_STEP";
    const STEPS: [&str; 5] = ["begun", "partly", "written", "synced", "renamed"];

    /// Not a test of its own: the process that the next one kills.
    #[test]
    fn replaces_until_it_is_killed() {
        let (Some(dir), Ok(stop)) = (std::env::var_os(IN), std::env::var(STEP)) else { return };
        let at = |step: &str| {
            if step == stop {
                println!("\nreached");
                io::stdout().flush().unwrap();
                let _ = io::stdin().read_line(&mut String::new());
            }
        };
        let mut r = Replacement::begin(&Path::new(&dir).join("image")).unwrap();
        at("begun");
        r.write_all(&NEW[..3]).unwrap();
        at("partly");
        r.write_all(&NEW[3..]).unwrap();
        at("written");
        r.sync().unwrap();
        at("synced");
        r.rename().unwrap();
        at("renamed");
    }

    #[test]
    fn killed_at_any_step_it_leaves_the_old_file_or_the_new_one() {
        for step in STEPS {
            let dir = TempDir::new().unwrap();
            let target = dir.as_path().join("image");
            std::fs::write(&target, OLD).unwrap();
            std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o600)).unwrap();
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "checkpoint::file::tests::replaces_until_it_is_killed", "--nocapture"])
                .env(IN, dir.as_path())
                .env(STEP, step)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(lines.map_while(Result::ok).any(|l| l == "reached"), "{step} is not reached");
            child.kill().unwrap();
            child.wait().unwrap();
            let expected = if step == "renamed" { NEW } else { OLD };
            assert_eq!(std::fs::read(&target).unwrap(), expected, "{step}");
            // The next one cleans up, and works.
            let mut r = Replacement::begin(&target).unwrap();
            let most = if r.nameless { 1 } else { 2 };
            assert_eq!(names(dir.as_path()).len(), most, "{step}: {:?}", names(dir.as_path()));
            r.write_all(NEW).unwrap();
            r.commit().unwrap();
            assert_eq!(names(dir.as_path()), ["image"], "{step}");
            assert_eq!(std::fs::read(&target).unwrap(), NEW, "{step}");
        }
    }
}
