//! What a worker's image contains, and in which sections.

use super::CheckpointError;
use super::carried::Carried;
use crate::sock::SocketsState;
use hibernet_netstack::conntrack::image::{self as ct, Family};
use hibernet_netstack::conntrack::{Conntrack, CtConfig};
use hibernet_netstack::image::{LEVEL, kind};
use hibernet_netstack::rng::Key;
use hibernet_netstack::state::StackState;
use hibernet_netstack::{Config, Time};
use hibernet_snapshot::{
    ChunkLayout, GenerationId, Image, ImageBuilder, Known, Progress, SectionFlags, SectionKind, SectionState, StateError,
    WriteError, chunk_crcs,
};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::thread;

/// Kind of the section of the host sockets.
const SOCKETS: SectionKind = SectionKind(kind::OTHERS.0);
/// Kind of the section about the worker itself.
const ORIGIN: SectionKind = SectionKind(kind::OTHERS.0 + 1);
/// Version of the records of connections.
const RECORDS: u16 = ct::VERSION as u16;
/// Levels since which there are counts in their versions.
const COUNTS_SINCE: &[u16] = &[2];
/// Fewer records are not worth a second thread.
const WORTH_A_THREAD: u32 = 16_384;

/// Where an image comes from, for whoever looks at it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Version of hibernet that wrote it.
    pub version: String,
    /// Name of the sandbox; empty if it has none.
    pub name: String,
    /// The worker went on after the freeze: the sockets of its flows did, too.
    pub went_on: bool,
}

impl SectionState for Origin {
    const KIND: SectionKind = ORIGIN;
    const VERSION: u16 = 1;
}

impl SectionState for SocketsState {
    const KIND: SectionKind = SOCKETS;
    const VERSION: u16 = 1;
}

/// A frozen worker.
#[derive(Debug)]
pub struct Contents {
    /// Which freeze this is.
    pub generation: GenerationId,
    /// Stack time at the freeze.
    pub now: Time,
    /// Wall clock at the freeze, nanoseconds since 1970.
    pub created: u64,
    /// The level at which it is written, up to [`LEVEL`].
    pub level: u16,
    /// Where it comes from.
    pub origin: Origin,
    /// The stack.
    pub stack: StackState,
    /// The tracked connections.
    pub connections: ct::Image,
    /// The host sockets.
    pub sockets: SocketsState,
    /// Those of them that nobody will hold.
    pub carried: Carried,
}

impl Contents {
    /// Whether images of its level can say all of it, but for sections that are not required.
    ///
    /// # Errors
    /// [`CheckpointError::Level`].
    pub(crate) fn fits_level(&self) -> Result<(), CheckpointError> {
        if self.level >= LEVEL {
            return Ok(());
        }
        match self.states() {
            Err(WriteError::Level { kind, level, why }) => {
                Err(CheckpointError::Level { level, section: section_name(kind), why })
            }
            // It will be seen again.
            _ => Ok(()),
        }
    }

    /// The image without the records of connections.
    fn states(&self) -> Result<ImageBuilder<'_>, WriteError> {
        let mut image = ImageBuilder::new(self.generation, self.now.as_nanos(), self.created).at_level(self.level);
        image.state(SectionFlags::OPTIONAL, 1, &self.origin)?;
        self.stack.add_to(&mut image)?;
        image.state(SectionFlags::REQUIRED, self.sockets.slots.len() as u64, &self.sockets)?;
        let carried = self.carried.tcp.len() + self.carried.datagram.len() + self.carried.listeners.len();
        image.state(SectionFlags::OPTIONAL, carried as u64, &self.carried)?;
        image.state(SectionFlags::REQUIRED, 1, self.connections.head())?;
        Ok(image)
    }

    /// Writes the image. Checksums are made here, so not in the freeze.
    ///
    /// # Errors
    /// If it cannot be written, or `progress` says so.
    pub fn write_to(&self, out: &mut impl Write, progress: &mut Progress<'_>) -> Result<u64, WriteError> {
        // Rules that ask for counts are not among what older levels can say; without such rules nobody needs them.
        let counts = self.connections.counts().filter(|_| self.level >= COUNTS_SINCE[0]);
        let mut image = self.states()?;
        for (kind, family) in [(kind::CONNECTIONS, Family::V4), (kind::CONNECTIONS_V6, Family::V6)] {
            let records = self.connections.records(family);
            let len = ct::record_size(family) as u32;
            let Some(layout) = ChunkLayout::new(records.len().into(), len) else { continue };
            let per_chunk = layout.records_per_chunk() as u32;
            let fill = move |chunk: usize, out: &mut [u8]| {
                records.fill(chunk as u32 * per_chunk, out);
            };
            let crcs = in_two(layout.chunks(), layout.records() as u32, |range| chunk_crcs(&fill, &layout, range));
            image.chunked_from(kind, RECORDS, SectionFlags::REQUIRED, layout, &crcs.concat(), fill)?;
        }
        if let Some(counts) = counts.as_deref().filter(|c| !c.is_empty()) {
            image.chunked(kind::COUNTS, RECORDS, SectionFlags::REQUIRED, ct::COUNTS as u32, counts)?;
        }
        image.write_to(out, progress)
    }
}

/// What a reader of a worker's image knows.
pub fn known() -> Vec<Known> {
    let mut known = StackState::known();
    known.extend([Origin::known(), SocketsState::known(), Carried::known(), ct::Head::known()]);
    known.extend([kind::CONNECTIONS, kind::CONNECTIONS_V6].map(|k| Known::new(k, RECORDS..=RECORDS)));
    known.push(Known::new(kind::COUNTS, RECORDS..=RECORDS).since(COUNTS_SINCE));
    known
}

/// What a section holds, in a word.
pub fn section_name(kind: SectionKind) -> &'static str {
    match kind {
        kind::CONFIG => "configuration",
        kind::LINKS => "links",
        kind::RULES => "rules",
        kind::GATEWAY => "services",
        kind::TCP => "tcp",
        kind::UDP => "udp",
        kind::ICMP => "icmp",
        kind::STATS => "statistics",
        kind::SETS => "sets",
        kind::RECENT => "recent",
        kind::HASHLIMIT => "hashlimit",
        kind::CONNLIMIT => "connlimit",
        kind::COUNTS => "counts",
        kind::CONNTRACK => "tracking",
        kind::CONNECTIONS => "connections4",
        kind::CONNECTIONS_V6 => "connections6",
        SOCKETS => "sockets",
        ORIGIN => "origin",
        Carried::KIND => "carried",
        _ => "unknown",
    }
}

/// The configuration in an image, which is to be put in force or changed before [`Worker::restore`](crate::worker::Worker::restore).
///
/// # Errors
/// If it is not there, damaged, or of a version that is not known.
pub fn config_of(image: &Image<'_>) -> Result<Config, StateError> {
    image.state()
}

/// Loads the tracked connections of an image.
pub(crate) fn load_connections(image: &Image<'_>, cfg: CtConfig, key: Key, now: Time) -> Result<Conntrack, String> {
    let head: ct::Head = image.state().map_err(|e| e.to_string())?;
    let records = head.v4.saturating_add(head.v6);
    let loader = ct::Loader::new(cfg, key, now, head).map_err(|e| e.to_string())?;
    for (kind, family) in [(kind::CONNECTIONS, Family::V4), (kind::CONNECTIONS_V6, Family::V6)] {
        let Ok(section) = image.section(kind) else { continue };
        let chunks = section.chunks_of(ct::record_size(family) as u32).map_err(|e| e.to_string())?;
        let per_chunk = chunks.layout().records_per_chunk() as u32;
        let done = in_two(chunks.len(), records, |range| {
            range.into_iter().try_for_each(|n| {
                let bytes = chunks.chunk(n).map_err(|e| e.to_string())?;
                loader.insert(family, n as u32 * per_chunk, bytes).map_err(|e| e.to_string())
            })
        });
        done.into_iter().collect::<Result<(), String>>()?;
    }
    if let Ok(section) = image.section(kind::COUNTS) {
        let chunks = section.chunks_of(ct::COUNTS as u32).map_err(|e| e.to_string())?;
        for n in 0..chunks.len() {
            let bytes = chunks.chunk(n).map_err(|e| e.to_string())?;
            loader.insert_counts(bytes).map_err(|e| e.to_string())?;
        }
    }
    loader.finish().map_err(|e| e.to_string())
}

/// Does something with the numbers below `n`, in two threads if there are many records and two processors. What cannot have a thread is done here.
fn in_two<R: Send>(n: usize, records: u32, work: impl Fn(std::ops::Range<usize>) -> R + Sync) -> Vec<R> {
    let alone = records < WORTH_A_THREAD || thread::available_parallelism().is_ok_and(|p| p.get() < 2);
    if alone {
        return vec![work(0..n)];
    }
    thread::scope(|s| {
        let other = thread::Builder::new().spawn_scoped(s, || work(n / 2..n));
        let first = work(0..n / 2);
        let second = other.ok().and_then(|t| t.join().ok()).unwrap_or_else(|| work(n / 2..n));
        vec![first, second]
    })
}
