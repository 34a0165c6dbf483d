//! Counters.

use crate::state::{Invalid, invalid};
use crate::verdict::DropReason;
use serde::{Deserialize, Serialize};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of a stack since it was made. All only grow.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
            drops: Drops,
        }

        impl Stats {
            fn counter_mut(&mut self, name: &str) -> Option<&mut u64> {
                match name {
                    $(stringify!($name) => Some(&mut self.$name),)*
                    _ => None,
                }
            }

            /// Moves what another worker's stack counted here.
            pub(crate) fn absorb(&mut self, other: &mut Stats) {
                let other = core::mem::take(other);
                $(self.$name += other.$name;)*
                self.drops.0.iter_mut().zip(other.drops.0).for_each(|(mine, theirs)| *mine += theirs);
            }

            /// Name and value of every counter but the drops.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Frames from the guest.
    rx_frames,
    /// Bytes in frames from the guest, Ethernet header included.
    rx_bytes,
    /// Frames to the guest.
    tx_frames,
    /// Bytes in frames to the guest, Ethernet header included.
    tx_bytes,
    /// TCP flows opened by the guest.
    tcp_out,
    /// TCP flows opened from outside through published ports.
    tcp_in,
    /// TCP flows that ended with a reset from either side, or by time-out.
    tcp_reset,
    /// TCP connects that the host could not make.
    tcp_connect_failed,
    /// Segments sent to the guest again after a time-out.
    tcp_rto,
    /// Segments sent to the guest again after duplicate acknowledgements.
    tcp_fast_retransmit,
    /// Zero-window probes sent to the guest.
    tcp_window_probe,
    /// Bytes from the guest that were held because the host socket took no more.
    tcp_held_bytes,
    /// Segments from the guest kept until the gap before them closes.
    tcp_out_of_order,
    /// UDP flows.
    udp_flows,
    /// UDP datagrams to the host.
    udp_to_host,
    /// UDP datagrams to the guest.
    udp_to_guest,
    /// ICMP echo flows.
    icmp_flows,
    /// ICMP errors sent to the guest.
    icmp_errors,
    /// DNS queries forwarded.
    dns_queries,
    /// DNS answers returned.
    dns_answers,
    /// DHCP leases given or renewed.
    dhcp_acks,
    /// Datagrams put together from fragments.
    reassembled,
    /// Frames that another worker has to deal with, of several.
    handed_over,
}

impl Stats {
    /// Counts a drop.
    pub fn drop(&mut self, why: DropReason) {
        self.drops.0[why as usize] += 1;
    }

    /// How many packets were dropped for this reason.
    pub fn dropped(&self, why: DropReason) -> u64 {
        self.drops.0[why as usize]
    }

    /// All reasons and their counts.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&r| (r, self.dropped(r)))
    }
}

/// No counter can have come so far; from here on there is room for what is yet to be counted.
const MOST: u64 = u64::MAX / 2;

/// Counters as they are saved, by name: versions may have others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsState {
    counters: Vec<(String, u64)>,
    drops: Vec<(String, u64)>,
}

impl Stats {
    /// All counters.
    pub(crate) fn save(&self) -> StatsState {
        StatsState {
            counters: self.counters().map(|(name, n)| (name.into(), n)).collect(),
            drops: self.drops().filter(|(_, n)| *n > 0).map(|(why, n)| (why.name().into(), n)).collect(),
        }
    }

    /// Goes on from saved counters. Those that this version does not have are left out.
    pub(crate) fn restore(state: &StatsState) -> Result<Self, Invalid> {
        if state.counters.iter().chain(&state.drops).any(|(_, n)| *n > MOST) {
            return Err(invalid("a counter that nobody lives to see"));
        }
        let mut stats = Stats::default();
        for (name, n) in &state.counters {
            if let Some(c) = stats.counter_mut(name) {
                *c = *n;
            }
        }
        for (name, n) in &state.drops {
            if let Some(why) = DropReason::ALL.iter().find(|r| r.name() == name) {
                stats.drops.0[*why as usize] = *n;
            }
        }
        Ok(stats)
    }
}

/// A counter per reason.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Drops([u64; 64]);

impl Default for Drops {
    fn default() -> Self {
        Drops([0; 64])
    }
}

const _: () = assert!(DropReason::ALL.len() <= 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_go_on_and_unknown_ones_are_left_out() {
        let mut stats = Stats { rx_frames: 7, ..Stats::default() };
        stats.drop(DropReason::Malformed);
        let mut state = stats.save();
        assert_eq!(Stats::restore(&state), Ok(stats.clone()));
        state.counters.push(("of another version".into(), 3));
        state.drops.push(("of another version".into(), 3));
        assert_eq!(Stats::restore(&state), Ok(stats));
        for n in [MOST + 1, u64::MAX] {
            state.counters[0].1 = n;
            assert!(Stats::restore(&state).is_err());
        }
    }
}
