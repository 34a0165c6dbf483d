//! How often the guest's kernel tries again before it gives a connection up: more often while its network sleeps.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// The settings, with the largest value that Linux takes: about a quarter and more of a day, and several hours.
const SETTINGS: [(&str, &str); 2] = [("tcp_retries2", "255"), ("tcp_syn_retries", "127")];

/// The settings of one network namespace, as files that are open: whoever owns the namespace's user namespace may change them from
/// outside of it.
#[derive(Debug, Default)]
pub(crate) struct Retries {
    files: Vec<File>,
    /// What stood there before they were raised.
    before: Vec<Vec<u8>>,
}

impl Retries {
    /// Opens the settings of the calling process's namespace. Where /proc/sys cannot be written there are none.
    pub(crate) fn open() -> Vec<OwnedFd> {
        let open = |(name, _)| OpenOptions::new().read(true).write(true).open(format!("/proc/sys/net/ipv4/{name}")).ok();
        let all: Option<Vec<File>> = SETTINGS.into_iter().map(open).collect();
        all.unwrap_or_default().into_iter().map(Into::into).collect()
    }

    /// From what [`Retries::open`] has opened.
    pub(crate) fn new(files: Vec<OwnedFd>) -> Retries {
        Retries { files: files.into_iter().map(File::from).collect(), before: Vec::new() }
    }

    /// Has the kernel go on trying.
    pub(crate) fn raise(&mut self) -> io::Result<()> {
        if !self.before.is_empty() {
            return Ok(());
        }
        let mut before = Vec::new();
        for f in &self.files {
            let mut text = [0; 32];
            let n = f.read_at(&mut text, 0)?;
            before.push(text[..n].to_vec());
        }
        self.before = before;
        for (f, (_, most)) in self.files.iter().zip(SETTINGS) {
            f.write_all_at(most.as_bytes(), 0)?;
        }
        Ok(())
    }

    /// Puts the settings back.
    pub(crate) fn put_back(&mut self) -> io::Result<()> {
        for (f, text) in self.files.iter().zip(std::mem::take(&mut self.before)) {
            f.write_all_at(&text, 0)?;
        }
        Ok(())
    }
}
