//! The first process of the demo's machine.

use super::super::guest::{DemoGuestArgs, stream};
use super::initramfs::MODULES;
use crate::sandbox::failure::{Failure, Status, complain};
use crate::sandbox::guest::configure;
use crate::sandbox::netlink::Netlink;
use crate::sandbox::plan::{Guest, LinkChoice, RingChoice};
use hibernet_netstack::config::Config;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const INTERFACE: &str = "eth0";
/// How long a device may take to be found.
const PROBING: Duration = Duration::from_secs(10);

/// Brings the network up, streams as the demo's program does, and switches the machine off.
pub(in crate::cli) fn machine(args: &DemoGuestArgs) -> Result<u8, Failure> {
    if std::process::id() != 1 {
        return Err(Failure::new(Status::Usage, "this is for a virtual machine, as its first process"));
    }
    if let Err(e) = set_up().and_then(|()| stream(args)) {
        complain(e);
    }
    reboot(RebootCommand::PowerOff).map_err(|e| Failure::os(Status::Internal, "cannot switch the machine off", e))?;
    Ok(0)
}

fn set_up() -> Result<(), Failure> {
    let fail = |e| Failure::os(Status::Internal, "in the machine: cannot mount /proc", e);
    mount("proc", "/proc", "proc", MountFlags::empty(), None).map_err(fail)?;
    let left = load_modules();
    let end = Instant::now() + PROBING;
    while Netlink::open().and_then(|mut n| n.interface(INTERFACE)).is_err() {
        if Instant::now() > end {
            let drivers = if left.is_empty() { "name those of the kernel with --modules".to_owned() } else { left.join(", ") };
            return Err(Failure::new(Status::Link, format!("in the machine: no network device; are drivers missing? {drivers}")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let guest = Guest {
        ifname: INTERFACE.into(),
        mtu: 1500,
        dhcp: false,
        link: LinkChoice::Any,
        ring: RingChoice::Off,
        queues: 1,
        workers: 1,
    };
    configure(&guest, &Config { v6: None, ..Config::default() }, INTERFACE)
}

/// Loads all drivers, each as soon as those are there that it needs; what became of the others.
fn load_modules() -> Vec<String> {
    let Ok(all) = std::fs::read_dir(MODULES) else { return Vec::new() };
    let mut left: Vec<PathBuf> = all.flatten().map(|e| e.path()).collect();
    loop {
        let (before, mut why) = (left.len(), Vec::new());
        left.retain(|path| {
            let loaded = File::open(path).map_err(|e| e.to_string()).and_then(|f| match finit_module(f, c"", 0) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
                Err(e) => Err(e.to_string()),
            });
            loaded.map_err(|e| why.push(format!("{}: {e}", path.display()))).is_err()
        });
        if left.len() == before || left.is_empty() {
            return why;
        }
    }
}
