//! Why a freeze or a thaw fails.

use hibernet_netstack::conntrack::image::CaptureError;
use hibernet_netstack::iptables::RuleError;
use hibernet_netstack::state::StateError;
use hibernet_snapshot::{CodecError, ImageError, ReadError, StateError as SectionError};
use std::io;

/// Why a worker cannot be frozen. It goes on as if nothing had happened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// It has ended.
    #[error("the worker has ended")]
    Finished,
    /// It is frozen already, and neither committed nor given up.
    #[error("a checkpoint is in progress; commit it or give it up first")]
    InProgress,
    /// The virtual machine that was to move runs again, or its monitor has left.
    #[error("the virtual machine does not move any more")]
    GivenUp,
    /// It is not frozen, or by another freeze.
    #[error("no checkpoint of this generation is in progress")]
    WrongToken,
    /// Too few of its flows would survive.
    #[error("only {surviving} of {flows} flows would survive, {require} % are required")]
    Require {
        /// Flows that would.
        surviving: usize,
        /// All flows.
        flows: usize,
        /// What is required, in percent.
        require: u8,
    },
    /// An image of the level that was asked for cannot say all that is there.
    #[error("an image of level {level} cannot hold this network: {section}: {why}")]
    Level {
        /// The level.
        level: u16,
        /// Which part of the image.
        section: &'static str,
        /// What is in the way.
        why: String,
    },
    /// Sockets cannot be carried over without somebody who may switch their repair mode.
    #[error(
        "nobody is there who may switch TCP repair on: be root, or start `hibernet repair-helper` as root and name it with --repair-helper"
    )]
    NoHelper,
    /// Sockets cannot be carried over.
    #[error("host sockets cannot be carried over in the image: {0}")]
    Carry(String),
    /// Connections were captured by two at a time.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The host refused something.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// Why an image cannot be thawed. Nothing has happened to the sockets that were handed in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The image cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A section cannot be decoded.
    #[error(transparent)]
    Section(#[from] SectionError),
    /// A section cannot be decoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// What it says cannot be.
    #[error(transparent)]
    State(#[from] StateError),
    /// It is of another freeze than the caller expects.
    #[error("the image is of another freeze: it has generation {found}, expected was {expected}")]
    WrongToken {
        /// Of the image.
        found: String,
        /// What the caller has.
        expected: String,
    },
    /// Too few of its flows would go on.
    #[error(
        "only {surviving} of {flows} flows would go on here, {require} % are required: does the host have their addresses, and may it repair connections?"
    )]
    Require {
        /// Flows that would.
        surviving: usize,
        /// All flows.
        flows: usize,
        /// What is required, in percent.
        require: u8,
    },
    /// The rules that were given in place of the image's make no sense.
    #[error("rules: {0}")]
    Rules(#[from] RuleError),
    /// The worker cannot be made.
    #[error(transparent)]
    Worker(#[from] crate::worker::WorkerError),
    /// The host sockets in the image make no sense, or cannot be watched.
    #[error(transparent)]
    Sockets(#[from] crate::sock::HoldError),
}
