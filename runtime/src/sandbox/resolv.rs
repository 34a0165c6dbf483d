//! The host's resolver configuration: read once at start, and again whenever it changes.

use super::failure::{Failure, Status};
use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Longest file that is looked at: the C library knows three servers and six domains.
const MAX_LEN: u64 = 64 << 10;
/// Most servers and domains that are taken over.
const MAX_ENTRIES: usize = 6;

/// What the host's resolver configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostResolver {
    /// Name servers in order of preference.
    pub servers: Vec<IpAddr>,
    /// Domains to search.
    pub search: Vec<String>,
}

/// Reads the host's /etc/resolv.conf. One that is missing or unreadable says nothing.
pub fn read_host() -> HostResolver {
    use std::io::Read;
    let mut text = String::new();
    match std::fs::File::open(RESOLV_CONF).and_then(|f| f.take(MAX_LEN).read_to_string(&mut text)) {
        Ok(_) => parse(&text),
        Err(_) => HostResolver::default(),
    }
}

/// Understands resolv.conf(5). What it does not know it skips, as the C library does; the last `search` or `domain` counts.
pub fn parse(text: &str) -> HostResolver {
    let mut out = HostResolver::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                let Some(word) = words.next() else { continue };
                // A scope (fe80::1%eth0) means nothing to the worker's sockets unless they can say it too; left out.
                if let Ok(a) = word.parse::<IpAddr>()
                    && out.servers.len() < MAX_ENTRIES
                    && !out.servers.contains(&a)
                {
                    out.servers.push(a);
                }
            }
            Some("search" | "domain") => {
                out.search = words.take_while(|w| !w.starts_with(['#', ';'])).take(MAX_ENTRIES).map(str::to_owned).collect();
            }
            _ => {}
        }
    }
    out
}

/// What happened in the directories that are watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The configuration, if it became another one. An empty file (in the middle of being rewritten) is no news.
    pub resolver: Option<HostResolver>,
}

/// Tells when the resolver configuration may have changed.
#[derive(Debug)]
pub struct Watch {
    inotify: OwnedFd,
    last: HostResolver,
}

impl Watch {
    /// Watches /etc/resolv.conf: the directory, since the file is mostly replaced by rename, and that of what it is a
    /// symbolic link to.
    ///
    /// # Errors
    ///
    /// Only if no watch can be had at all (limit of inotify instances).
    pub fn new() -> Result<Self, Failure> {
        let inotify = rustix::fs::inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(|e| Failure::os(Status::Resources, "cannot watch /etc/resolv.conf", e))?;
        let watch = Watch { inotify, last: read_host() };
        watch.arm();
        Ok(watch)
    }

    /// Directories whose changes matter. One that is watched already stays so.
    fn arm(&self) {
        let mut path = PathBuf::from(RESOLV_CONF);
        // As many steps as the kernel follows links.
        for _ in 0..40 {
            let dir = path.parent().unwrap_or(Path::new("/"));
            let flags = WatchFlags::CREATE
                | WatchFlags::MOVED_TO
                | WatchFlags::DELETE
                | WatchFlags::MOVED_FROM
                | WatchFlags::CLOSE_WRITE
                | WatchFlags::MODIFY
                | WatchFlags::ONLYDIR;
            let _ = rustix::fs::inotify::add_watch(&self.inotify, dir, flags);
            match std::fs::read_link(&path) {
                Ok(to) => path = dir.join(to),
                Err(_) => break,
            }
        }
    }

    /// Takes what is pending; `None` if nothing is.
    pub fn changes(&mut self) -> Option<Changes> {
        let mut buf = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.inotify, &mut buf);
        let mut any = false;
        while reader.next().is_ok() {
            any = true;
        }
        if !any {
            return None;
        }
        self.arm();
        let now = read_host();
        let resolver = (now != self.last && !now.servers.is_empty()).then(|| now.clone());
        if resolver.is_some() {
            self.last = now;
        }
        Some(Changes { resolver })
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn understands_what_the_c_library_does() {
        let r = parse(
            "# comment\n; other\nnameserver 192.0.2.1\nnameserver  2001:db8::1 # trailing\nnameserver fe80::1%eth0\nnameserver\n\
             domain old.example\nsearch a.example b.example # c\noptions ndots:2\nnameserver 192.0.2.1\nnonsense\n",
        );
        assert_eq!(r.servers, ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
        assert_eq!(r.search, ["a.example", "b.example"]);
    }

    #[test]
    fn is_bounded() {
        let many: String = (0..200).map(|i| format!("nameserver 192.0.2.{i}\n")).collect();
        assert_eq!(parse(&many).servers.len(), MAX_ENTRIES);
    }
}
