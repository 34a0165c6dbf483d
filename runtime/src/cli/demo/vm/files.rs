//! What the demo's machine is made of: a QEMU that moves a network along, and a kernel with its drivers. Found, or it is said how they can be had.

use super::VmOptions;
use crate::sandbox::failure::{Failure, Status};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// First version of QEMU that carries the state of a vhost-user back end along.
const OLDEST_QEMU: u32 = 10;
const QEMU: &str = "qemu-system-x86_64";
/// Drivers that an ordinary kernel has as modules. What one of them lacks, the kernel has built in, or it is of another version.
const DRIVERS: [&str; 9] = [
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "dimlib",
    "virtio_net",
];
/// How far into a kernel's file its version may be.
const HEAD: u64 = 1 << 20;

/// What is needed.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) qemu: PathBuf,
    pub(super) qemu_version: String,
    pub(super) kernel: Kernel,
}

/// A kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    pub(super) version: String,
    modules: Option<PathBuf>,
}

fn missing(message: impl Into<String>) -> Failure {
    Failure::new(Status::NotFound, message)
}

impl Files {
    /// Those that were named, or that are here.
    pub(super) fn find(options: &VmOptions) -> Result<Files, Failure> {
        if !cfg!(target_arch = "x86_64") {
            return Err(missing("demo --vm is for x86_64 only"));
        }
        let qemu = options.qemu.clone().unwrap_or_else(|| QEMU.into());
        let qemu_version = qemu_version(&qemu)?;
        let kernel = match &options.kernel {
            Some(image) => Kernel::at(image, options.modules.as_deref())?,
            None => Kernel::installed()?,
        };
        Ok(Files { qemu, qemu_version, kernel })
    }
}

fn qemu_version(qemu: &Path) -> Result<String, Failure> {
    let how = "in the source of hibernet, `tests/guest/fetch-qemu.sh DIR` unpacks one that --qemu DIR/qemu takes";
    let said = Command::new(qemu).arg("--version").stdin(Stdio::null()).output().map_err(|e| {
        let install = "install it (Debian 13: apt-get install qemu-system-x86), or name another with --qemu";
        missing(format!("{}: {e}; QEMU {OLDEST_QEMU} or newer is needed: {install}; {how}", qemu.display()))
    })?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let first = said.lines().next().unwrap_or_default();
    let version = first.split("version ").nth(1).and_then(|v| v.split_whitespace().next()).unwrap_or("of no known version");
    match version.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
        Some(major) if major >= OLDEST_QEMU => Ok(version.to_owned()),
        _ => Err(missing(format!(
            "{} is {version}, which cannot save a network with its machine: QEMU {OLDEST_QEMU} or newer is needed (Debian 13 has it); {how}",
            qemu.display()
        ))),
    }
}

impl Kernel {
    /// The one that runs here, else the newest of those that are installed with their drivers.
    fn installed() -> Result<Kernel, Failure> {
        let running = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut versions: Vec<String> = fs::read_dir("/lib/modules")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .collect();
        versions.sort_by_key(|v| (*v == running, v.clone()));
        let images = versions.iter().rev().flat_map(|v| [format!("/boot/vmlinuz-{v}"), format!("/lib/modules/{v}/vmlinuz")]);
        let mut unreadable = None;
        for image in images.map(PathBuf::from).filter(|p| p.exists()) {
            match File::open(&image) {
                Ok(_) => return Kernel::at(&image, None),
                Err(e) => {
                    unreadable =
                        unreadable.or(Some(format!("{} cannot be read ({e}): give --kernel a copy of it, or ", image.display())))
                }
            }
        }
        Err(missing(format!(
            "no kernel for the machine: {}install one (Debian: apt-get install linux-image-cloud-amd64), or name one with --kernel and its drivers with --modules; \
             in the source of hibernet, `tests/guest/build.sh DIR` unpacks one: --kernel DIR/vmlinuz --modules DIR/kernel/lib/modules",
            unreadable.unwrap_or_default()
        )))
    }

    fn at(image: &Path, modules: Option<&Path>) -> Result<Kernel, Failure> {
        let mut head = Vec::new();
        let read = File::open(image).and_then(|f| f.take(HEAD).read_to_end(&mut head));
        read.map_err(|e| Failure::os(Status::File, format_args!("cannot read the kernel {}", image.display()), e))?;
        let version =
            version(&head).ok_or_else(|| missing(format!("{} is no Linux kernel for a PC (bzImage)", image.display())))?;
        let modules = match modules {
            Some(m) if m.is_dir() => Some(m.to_owned()),
            Some(m) => return Err(missing(format!("--modules {}: no directory", m.display()))),
            None => {
                let beside = image.parent().map(|dir| dir.join("../lib/modules"));
                let all = [Some("/lib/modules".into()), Some("/usr/lib/modules".into()), beside];
                all.into_iter().flatten().map(|dir: PathBuf| dir.join(&version)).find(|dir| dir.is_dir())
            }
        };
        Ok(Kernel { image: image.to_owned(), version, modules })
    }

    /// Name and content of each driver that the network needs and the kernel does not have built in.
    pub(super) fn modules(&self) -> Result<Vec<(String, Vec<u8>)>, Failure> {
        let mut found = Vec::new();
        if let Some(dir) = &self.modules {
            find(dir, &mut found)
                .map_err(|e| Failure::os(Status::File, format_args!("cannot look for drivers in {}", dir.display()), e))?;
        }
        found.into_iter().map(|(name, path)| Ok((format!("{name}.ko"), unpacked(&path)?))).collect()
    }
}

/// The version that a kernel's image names (Linux, Documentation/arch/x86/boot.rst).
fn version(image: &[u8]) -> Option<String> {
    image.get(0x202..)?.strip_prefix(b"HdrS")?;
    let at = usize::from(u16::from_le_bytes(image.get(0x20e..0x210)?.try_into().ok()?)) + 0x200;
    let text: Vec<u8> = image.get(at..)?.iter().copied().take_while(|b| b.is_ascii_graphic()).collect();
    String::from_utf8(text).ok().filter(|v| !v.is_empty())
}

/// Looks for the drivers in a directory and those in it.
fn find(dir: &Path, found: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // Links lead to where the kernel was built.
        if entry.file_type()?.is_dir() {
            find(&entry.path(), found)?;
            continue;
        }
        let name = entry.file_name().to_string_lossy().replace('-', "_");
        let Some((module, "ko" | "ko.xz" | "ko.zst" | "ko.gz")) = name.split_once('.') else { continue };
        if DRIVERS.contains(&module) && !found.iter().any(|(n, _)| n == module) {
            found.push((module.to_owned(), entry.path()));
        }
    }
    Ok(())
}

/// The content of a file that may be compressed.
fn unpacked(path: &Path) -> Result<Vec<u8>, Failure> {
    let fail = |e| Failure::os(Status::File, format_args!("cannot read {}", path.display()), e);
    let program = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).map_err(fail),
    };
    let packed = File::open(path).map_err(fail)?;
    let done = Command::new(program).arg("-dc").stdin(packed).output().map_err(|e| {
        missing(format!(
            "{program}: {e}; it is needed to unpack {}: install it (Debian: apt-get install xz-utils zstd gzip)",
            path.display()
        ))
    })?;
    if done.status.success() {
        return Ok(done.stdout);
    }
    Err(Failure::new(
        Status::File,
        format!("{} cannot be unpacked: {}", path.display(), String::from_utf8_lossy(&done.stderr).trim()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_says_its_version() {
        let mut image = vec![0; 0x400];
        assert_eq!(version(&image), None);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x30d].copy_from_slice(b"6.1.0-9 (x@y)");
        assert_eq!(version(&image).as_deref(), Some("6.1.0-9"));
        image[0x20e..0x210].copy_from_slice(&0xffff_u16.to_le_bytes());
        assert_eq!(version(&image), None);
        assert_eq!(version(b"#!/bin/sh"), None);
    }

    #[test]
    fn what_is_no_qemu_is_said() {
        let none = qemu_version(Path::new("/nonexistent/qemu")).unwrap_err();
        assert!(none.message.contains("QEMU 10 or newer") && none.message.contains("apt-get install"), "{none}");
        let other = qemu_version(Path::new("true")).unwrap_err();
        assert!(other.message.contains("no known version"), "{other}");
    }
}
