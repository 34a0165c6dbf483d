//! A stack's state in an image: a section for each part, with a version of its own.
//!
//! [`kind`] gives out the numbers. Those of the tracked connections are of `conntrack::image`; numbers from [`kind::OTHERS`] on are free for
//! whoever embeds the stack.

use crate::config::Config;
use crate::conntrack::image::Head;
use crate::gateway::GatewayState;
use crate::ipset::SetsState;
use crate::iptables::{ConnlimitState, HashlimitState, RecentState};
use crate::router::{LinksState, LinksStateV1, RulesState};
use crate::state::StackState;
use crate::stats::StatsState;
use crate::translate::icmp::IcmpState;
use crate::translate::tcp::TcpState;
use crate::translate::udp::UdpState;
use hibernet_snapshot::{Image, ImageBuilder, Known, SectionFlags, SectionKind, SectionState, StateError, Upgrade, WriteError};

/// The level of images (see [`ImageBuilder::at_level`]) that are written: raised with the version of any section, and for each new kind.
pub const LEVEL: u16 = 2;

/// Kinds of sections.
pub mod kind {
    use hibernet_snapshot::SectionKind;

    /// Configuration.
    pub const CONFIG: SectionKind = SectionKind(1);
    /// Links and neighbours.
    pub const LINKS: SectionKind = SectionKind(2);
    /// Rules.
    pub const RULES: SectionKind = SectionKind(3);
    /// The gateway's services.
    pub const GATEWAY: SectionKind = SectionKind(4);
    /// TCP flows.
    pub const TCP: SectionKind = SectionKind(5);
    /// UDP flows.
    pub const UDP: SectionKind = SectionKind(6);
    /// Echo flows.
    pub const ICMP: SectionKind = SectionKind(7);
    /// Statistics.
    pub const STATS: SectionKind = SectionKind(8);
    /// Sets of addresses, nets and ports; not there if there are none.
    pub const SETS: SectionKind = SectionKind(9);
    /// Addresses that rules remember; not there if there are no such rules.
    pub const RECENT: SectionKind = SectionKind(10);
    /// What rules of `hashlimit` remember; not there if there are none.
    pub const HASHLIMIT: SectionKind = SectionKind(11);
    /// Connections that rules of `connlimit` count; not there if there are none.
    pub const CONNLIMIT: SectionKind = SectionKind(12);
    /// What the table of connections has beside them.
    pub const CONNTRACK: SectionKind = SectionKind(16);
    /// Records of tracked connections.
    pub const CONNECTIONS: SectionKind = SectionKind(17);
    /// What IPv6 connections have beyond their records.
    pub const CONNECTIONS_V6: SectionKind = SectionKind(18);
    /// What connections carried; not there if nobody counts.
    pub const COUNTS: SectionKind = SectionKind(19);
    /// From here on: not the stack's.
    pub const OTHERS: SectionKind = SectionKind(64);
}

impl SectionState for Head {
    const KIND: SectionKind = kind::CONNTRACK;
    const VERSION: u16 = 1;
}

/// What is behind `optional` has a section only if there is something to be saved. `since` has the levels of all versions; without it there is one
/// version, which images of every level have. A type that stands behind `from` is made of the state and the state of it (`From`, `TryFrom`).
macro_rules! sections {
    (
        always { $($state:ty: $kind:ident, $version:literal, $field:ident
            $(, since $($since:literal),+)? $(, from $($from:literal $old:ty),+)?;)* }
        optional { $($opt_state:ty: $opt_kind:ident, $opt_version:literal, $opt_field:ident
            $(, since $($opt_since:literal),+)? $(, from $($opt_from:literal $opt_old:ty),+)?;)* }
    ) => {
        $(impl SectionState for $state {
            const KIND: SectionKind = kind::$kind;
            const VERSION: u16 = $version;
            const UPGRADES: &'static [Upgrade<Self>] = &[$($(Upgrade::both_ways::<$old>($from)),+)?];
            $(const SINCE: &'static [u16] = &[$($since),+];)?
        })*
        $(impl SectionState for $opt_state {
            const KIND: SectionKind = kind::$opt_kind;
            const VERSION: u16 = $opt_version;
            const UPGRADES: &'static [Upgrade<Self>] = &[$($(Upgrade::both_ways::<$opt_old>($opt_from)),+)?];
            $(const SINCE: &'static [u16] = &[$($opt_since),+];)?
        })*

        impl StackState {
            /// The sections that a state is read from.
            pub fn known() -> Vec<Known> {
                vec![$(<$state>::known(),)* $(<$opt_state>::known(),)*]
            }

            /// Adds the state's sections to an image.
            ///
            /// # Errors
            /// If a part is larger than a section may be, or the image's level has no way to say what it says.
            pub fn add_to(&self, image: &mut ImageBuilder<'_>) -> Result<(), WriteError> {
                let level = image.level();
                let spoken = self.rules.is_spoken_at(level);
                spoken.map_err(|why| WriteError::Level { kind: kind::RULES, level, why: why.to_string() })?;
                $(image.state(SectionFlags::REQUIRED, 1, &self.$field)?;)*
                $(if !self.$opt_field.is_empty() {
                    image.state(SectionFlags::REQUIRED, 1, &self.$opt_field)?;
                })*
                Ok(())
            }

            /// The state in an image, not looked at yet but for its form.
            ///
            /// # Errors
            /// If a section is not there, damaged, or not of the form of its version.
            pub fn from_image(image: &Image<'_>) -> Result<StackState, StateError> {
                Ok(StackState { $($field: image.state()?,)* $($opt_field: optional(image)?,)* })
            }
        }
    };
}

sections! {
    always {
        Config: CONFIG, 1, config;
        LinksState: LINKS, 2, links, since 1, 2, from 1 LinksStateV1;
        RulesState: RULES, 1, rules;
        GatewayState: GATEWAY, 1, gateway;
        TcpState: TCP, 1, tcp;
        UdpState: UDP, 1, udp;
        IcmpState: ICMP, 1, icmp;
        StatsState: STATS, 1, stats;
    }
    optional {
        SetsState: SETS, 1, sets, since 2;
        RecentState: RECENT, 1, recent, since 2;
        HashlimitState: HASHLIMIT, 1, hashlimit, since 2;
        ConnlimitState: CONNLIMIT, 1, connlimit, since 2;
    }
}

/// The state of a section that need not be there.
fn optional<T: SectionState + Default>(image: &Image<'_>) -> Result<T, StateError> {
    match image.section(T::KIND) {
        Ok(section) => section.state(),
        Err(_) => Ok(T::default()),
    }
}
