//! Options with a few values.

use crate::sandbox::plan::{LinkChoice, RingChoice};
use clap::ValueEnum;

/// `--egress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EgressArg {
    /// All but the host itself, its link and metadata services.
    Open,
    /// As open, and no private ranges.
    Public,
    /// Nothing.
    None,
}

/// `--link`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LinkArg {
    /// A TAP device.
    Tap,
    /// A veth pair with a packet socket at its far end.
    Packet,
}

/// `--ring`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RingArg {
    /// Where the kernel can and it pays.
    Auto,
    /// Or not at all.
    On,
    /// By calls.
    Off,
}

/// `--log-level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LevelArg {
    /// Only what ends the sandbox.
    Error,
    /// And what somebody should look at.
    Warning,
    /// And what happened.
    Info,
    /// And details.
    Debug,
}

impl From<LevelArg> for slog::Level {
    fn from(l: LevelArg) -> Self {
        match l {
            LevelArg::Error => slog::Level::Error,
            LevelArg::Warning => slog::Level::Warning,
            LevelArg::Info => slog::Level::Info,
            LevelArg::Debug => slog::Level::Debug,
        }
    }
}

impl From<LinkArg> for LinkChoice {
    fn from(l: LinkArg) -> Self {
        match l {
            LinkArg::Tap => LinkChoice::Tap,
            LinkArg::Packet => LinkChoice::Packet,
        }
    }
}

impl From<RingArg> for RingChoice {
    fn from(r: RingArg) -> Self {
        match r {
            RingArg::Auto => RingChoice::Auto,
            RingArg::On => RingChoice::On,
            RingArg::Off => RingChoice::Off,
        }
    }
}
