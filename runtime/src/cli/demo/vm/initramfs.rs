//! The machine's initial file system: this very program as its first process, with the libraries that it needs, and drivers for the network. Nothing
//! else is needed inside.

use super::files::Kernel;
use crate::sandbox::failure::{Failure, Status};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Where drivers are.
pub(super) const MODULES: &str = "/modules";

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CONSOLE: u32 = 0o020_600;

/// Writes it.
pub(super) fn write(path: &Path, kernel: &Kernel) -> Result<(), Failure> {
    let fail = |e| Failure::os(Status::File, format_args!("cannot write {}", path.display()), e);
    let this = std::fs::read("/proc/self/exe").map_err(|e| Failure::os(Status::File, "cannot read this program", e))?;
    let mut archive = Archive { out: BufWriter::new(File::create(path).map_err(fail)?), inode: 0, directories: Vec::new() };
    for directory in ["/dev", "/proc", "/sys", MODULES] {
        archive.directory(directory).map_err(fail)?;
    }
    archive.entry("/dev/console", CONSOLE, (5, 1), &[]).map_err(fail)?;
    archive.file("/init", &without_symbols(this)).map_err(fail)?;
    for library in libraries()? {
        let bytes = std::fs::read(&library).map_err(|e| Failure::os(Status::File, format_args!("cannot read {library}"), e))?;
        archive.file(&library, &bytes).map_err(fail)?;
    }
    for (name, bytes) in kernel.modules()? {
        archive.file(&format!("{MODULES}/{name}"), &bytes).map_err(fail)?;
    }
    archive.end().map_err(fail)
}

/// An archive as the kernel unpacks it (cpio, `newc`: Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
struct Archive<W> {
    out: W,
    inode: u32,
    directories: Vec<String>,
}

impl<W: Write> Archive<W> {
    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let name = path.trim_start_matches('/');
        let length = u32::try_from(content.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.inode += 1;
        let fields = [self.inode, mode, 0, 0, 1, 0, length, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        let head: String = fields.iter().map(|f| format!("{f:08x}")).collect();
        write!(self.out, "070701{head}{name}\0")?;
        // Name and content begin at multiples of four; the head is 110 bytes long.
        self.pad(110 + name.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..length.wrapping_neg() % 4])
    }

    /// With those that it is in.
    fn directory(&mut self, path: &str) -> io::Result<()> {
        if path == "/" || path.is_empty() || self.directories.iter().any(|d| d == path) {
            return Ok(());
        }
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
        self.directory(&parent)?;
        self.directories.push(path.to_owned());
        self.entry(path, DIRECTORY, (0, 0), &[])
    }

    fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.directory(path.rsplit_once('/').map_or("", |(parent, _)| parent))?;
        self.entry(path, PROGRAM, (0, 0), content)
    }

    fn end(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()
    }
}

/// Libraries of this program, and what loads them, by the names under which it looks for them.
fn libraries() -> Result<Vec<String>, Failure> {
    // As ldd(1) does. A program without libraries runs, and says its version.
    let said = Command::new("/proc/self/exe").arg("--version").env("LD_TRACE_LOADED_OBJECTS", "1").stdin(Stdio::null()).output();
    let said = said.map_err(|e| Failure::os(Status::Resources, "cannot ask for this program's libraries", e))?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let path = |line: &str| {
        let (path, _) = line.trim().rsplit_once(" (0x")?;
        let path = path.rsplit_once("=> ").map_or(path, |(_, path)| path);
        path.starts_with('/').then(|| path.to_owned())
    };
    Ok(said.lines().filter_map(path).collect())
}

/// An ELF file of 64 bits, little-endian, cut behind what is loaded of it: symbols would only take room. Anything else as it is.
fn without_symbols(mut elf: Vec<u8>) -> Vec<u8> {
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(length)?)?;
        usize::try_from(bytes.iter().rev().fold(0_u64, |n, b| n << 8 | u64::from(*b))).ok()
    };
    let end = || -> Option<usize> {
        let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
        let mut end = table.checked_add(size * count)?;
        for segment in 0..count {
            let at = table + segment * size;
            end = end.max(number(at + 8, 8)?.checked_add(number(at + 0x20, 8)?)?);
        }
        (elf.starts_with(b"\x7fELF\x02\x01") && end <= elf.len()).then_some(end)
    };
    if let Some(end) = end() {
        elf.truncate(end);
        // Where sections are described, and how many there are.
        elf[0x28..0x30].fill(0);
        elf[0x3c..0x40].fill(0);
    }
    elf
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_still_runs() {
        let whole = std::fs::read("/proc/self/exe").unwrap();
        let cut = without_symbols(whole.clone());
        assert!(cut.len() < whole.len());
        let dir = std::env::temp_dir().join(format!("hibernet-cut-{}", std::process::id()));
        std::fs::write(&dir, cut).unwrap();
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let done = Command::new(&dir).arg("--list").output();
        std::fs::remove_file(&dir).unwrap();
        assert!(String::from_utf8_lossy(&done.unwrap().stdout).contains("what_is_cut_still_runs"));
    }

    #[test]
    fn what_is_no_program_stays() {
        for bytes in [&b""[..], b"\x7fELF\x02\x01", b"#!/bin/sh\n", &[0xff; 100]] {
            assert_eq!(without_symbols(bytes.to_vec()), bytes);
        }
    }

    #[test]
    fn libraries_are_found() {
        let all = libraries().unwrap();
        assert!(all.iter().all(|l| Path::new(l).is_file()), "{all:?}");
    }

    #[test]
    fn an_archive_is_one() {
        let mut archive = Archive { out: Vec::new(), inode: 0, directories: Vec::new() };
        archive.file("/a/b/c", b"hello").unwrap();
        archive.file("/a/d", b"").unwrap();
        archive.entry("TRAILER!!!", 0, (0, 0), &[]).unwrap();
        let bytes = archive.out;
        let (mut at, mut names) = (0, Vec::new());
        while at < bytes.len() {
            assert!(at % 4 == 0 && bytes[at..].starts_with(b"070701"), "{at}");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (length, name) = (field(6), field(11));
            names.push(String::from_utf8(bytes[at + 110..at + 109 + name].to_vec()).unwrap());
            let content = (at + 110 + name).next_multiple_of(4);
            if names.last().unwrap() == "a/b/c" {
                assert_eq!(&bytes[content..content + length], b"hello");
            }
            at = (content + length).next_multiple_of(4);
        }
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/d", "TRAILER!!!"]);
    }
}
