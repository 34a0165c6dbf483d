//! What of connection tracking can be tuned. Defaults are those of a fresh network namespace of Linux 6.18.

use super::tcp::TcpState;
use core::time::Duration;
use serde::{Deserialize, Serialize};

/// Longest time-out that can be set: what the kernel's 32 bits of seconds would hold is cut to about 68 years.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(i32::MAX as u64);

/// Connections tracked at most, unless told otherwise.
pub const DEFAULT_MAX: u32 = 262_144;

/// Settings of connection tracking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtConfig {
    /// Connections tracked at most (`nf_conntrack_max`); at least 1.
    pub max: u32,
    /// When connections that nothing renews are forgotten.
    pub timeouts: Timeouts,
    /// Connections that are found in their middle are tracked (`nf_conntrack_tcp_loose`).
    pub tcp_loose: bool,
    /// Only resets outside of the window are INVALID (`nf_conntrack_tcp_be_liberal`).
    pub tcp_be_liberal: bool,
    /// Resets before what was acknowledged are not INVALID (`nf_conntrack_tcp_ignore_invalid_rst`).
    pub tcp_ignore_invalid_rst: bool,
    /// So many repetitions of a segment that carries an acknowledgement shorten the time-out
    /// (`nf_conntrack_tcp_max_retrans`).
    pub tcp_max_retrans: u8,
}

impl Default for CtConfig {
    fn default() -> Self {
        CtConfig {
            max: DEFAULT_MAX,
            timeouts: Timeouts::default(),
            tcp_loose: true,
            tcp_be_liberal: false,
            tcp_ignore_invalid_rst: false,
            tcp_max_retrans: 3,
        }
    }
}

/// Time-outs of all protocols. At most [`MAX_TIMEOUT`] each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// TCP.
    pub tcp: TcpTimeouts,
    /// UDP that was not answered, or not for longer than two seconds (`nf_conntrack_udp_timeout`).
    pub udp: Duration,
    /// UDP that goes both ways for longer than two seconds (`nf_conntrack_udp_timeout_stream`).
    pub udp_stream: Duration,
    /// ICMP queries (`nf_conntrack_icmp_timeout`).
    pub icmp: Duration,
    /// ICMPv6 queries (`nf_conntrack_icmpv6_timeout`).
    pub icmpv6: Duration,
    /// GRE that was not answered (`nf_conntrack_gre_timeout`).
    pub gre: Duration,
    /// GRE that goes both ways (`nf_conntrack_gre_timeout_stream`).
    pub gre_stream: Duration,
    /// Everything else (`nf_conntrack_generic_timeout`).
    pub generic: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            tcp: TcpTimeouts::default(),
            udp: Duration::from_secs(30),
            udp_stream: Duration::from_secs(120),
            icmp: Duration::from_secs(30),
            icmpv6: Duration::from_secs(30),
            gre: Duration::from_secs(30),
            gre_stream: Duration::from_secs(180),
            generic: Duration::from_secs(600),
        }
    }
}

/// Time-outs of TCP by state, and those that may be shorter (`nf_conntrack_tcp_timeout_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpTimeouts {
    /// SYN seen.
    pub syn_sent: Duration,
    /// SYN-ACK seen.
    pub syn_recv: Duration,
    /// Established.
    pub established: Duration,
    /// FIN seen.
    pub fin_wait: Duration,
    /// FIN acknowledged.
    pub close_wait: Duration,
    /// FIN seen from both.
    pub last_ack: Duration,
    /// Both FINs acknowledged.
    pub time_wait: Duration,
    /// Reset.
    pub close: Duration,
    /// SYN seen from both. (Linux has no sysctl for it.)
    pub syn_sent2: Duration,
    /// At most this after too many retransmissions, and while the window is closed.
    pub max_retrans: Duration,
    /// At most this while data is not acknowledged, and for a connection found in its middle until it is answered.
    pub unacknowledged: Duration,
}

impl Default for TcpTimeouts {
    fn default() -> Self {
        TcpTimeouts {
            syn_sent: Duration::from_secs(120),
            syn_recv: Duration::from_secs(60),
            established: Duration::from_secs(432_000),
            fin_wait: Duration::from_secs(120),
            close_wait: Duration::from_secs(60),
            last_ack: Duration::from_secs(30),
            time_wait: Duration::from_secs(120),
            close: Duration::from_secs(10),
            syn_sent2: Duration::from_secs(120),
            max_retrans: Duration::from_secs(300),
            unacknowledged: Duration::from_secs(300),
        }
    }
}

impl TcpTimeouts {
    /// The time-out of a state.
    pub const fn of(&self, state: TcpState) -> Duration {
        match state {
            // No connection stays in this state.
            TcpState::None | TcpState::SynSent => self.syn_sent,
            TcpState::SynRecv => self.syn_recv,
            TcpState::Established => self.established,
            TcpState::FinWait => self.fin_wait,
            TcpState::CloseWait => self.close_wait,
            TcpState::LastAck => self.last_ack,
            TcpState::TimeWait => self.time_wait,
            TcpState::Close => self.close,
            TcpState::SynSent2 => self.syn_sent2,
        }
    }
}

/// Why a setting was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// There is none of this name.
    #[error("no setting of connection tracking is named {0:?}")]
    Unknown(String),
    /// The value does not fit.
    #[error("{name}: {value} is out of range, at most {max} is possible")]
    TooLarge {
        /// Name as given.
        name: String,
        /// Value as given.
        value: u64,
        /// Largest.
        max: u64,
    },
    /// Zero makes no sense.
    #[error("{0}: must be at least 1")]
    Zero(String),
}

impl CtConfig {
    /// Names of all settings, as Linux names the files in `/proc/sys/net/netfilter`, without their `nf_conntrack_`.
    /// `tcp_timeout_syn_sent2` is ours.
    pub const NAMES: &'static [&'static str] = &[
        "max",
        "tcp_loose",
        "tcp_be_liberal",
        "tcp_ignore_invalid_rst",
        "tcp_max_retrans",
        "tcp_timeout_syn_sent",
        "tcp_timeout_syn_recv",
        "tcp_timeout_established",
        "tcp_timeout_fin_wait",
        "tcp_timeout_close_wait",
        "tcp_timeout_last_ack",
        "tcp_timeout_time_wait",
        "tcp_timeout_close",
        "tcp_timeout_syn_sent2",
        "tcp_timeout_max_retrans",
        "tcp_timeout_unacknowledged",
        "udp_timeout",
        "udp_timeout_stream",
        "icmp_timeout",
        "icmpv6_timeout",
        "gre_timeout",
        "gre_timeout_stream",
        "generic_timeout",
    ];

    /// Sets one setting by its name in [`CtConfig::NAMES`], with or without `nf_conntrack_` or `net.netfilter.nf_conntrack_` before it. Time-outs are in
    /// seconds, switches are 0 and 1.
    pub fn set(&mut self, name: &str, value: u64) -> Result<(), SettingError> {
        let at_most = |max: u64| match value {
            v if v > max => Err(SettingError::TooLarge { name: name.into(), value, max }),
            v => Ok(v),
        };
        let short = name.strip_prefix("net.netfilter.").unwrap_or(name);
        let short = short.strip_prefix("nf_conntrack_").unwrap_or(short);
        if let Some(timeout) = self.timeouts.by_name(short) {
            *timeout = Duration::from_secs(at_most(MAX_TIMEOUT.as_secs())?);
            return Ok(());
        }
        match short {
            "max" if value == 0 => return Err(SettingError::Zero(name.into())),
            "max" => self.max = at_most(u64::from(u32::MAX))? as u32,
            "tcp_loose" => self.tcp_loose = at_most(1)? == 1,
            "tcp_be_liberal" => self.tcp_be_liberal = at_most(1)? == 1,
            "tcp_ignore_invalid_rst" => self.tcp_ignore_invalid_rst = at_most(1)? == 1,
            "tcp_max_retrans" => self.tcp_max_retrans = at_most(255)? as u8,
            _ => return Err(SettingError::Unknown(name.into())),
        }
        Ok(())
    }
}

impl Timeouts {
    fn by_name(&mut self, name: &str) -> Option<&mut Duration> {
        let t = &mut self.tcp;
        Some(match name {
            "tcp_timeout_syn_sent" => &mut t.syn_sent,
            "tcp_timeout_syn_recv" => &mut t.syn_recv,
            "tcp_timeout_established" => &mut t.established,
            "tcp_timeout_fin_wait" => &mut t.fin_wait,
            "tcp_timeout_close_wait" => &mut t.close_wait,
            "tcp_timeout_last_ack" => &mut t.last_ack,
            "tcp_timeout_time_wait" => &mut t.time_wait,
            "tcp_timeout_close" => &mut t.close,
            "tcp_timeout_syn_sent2" => &mut t.syn_sent2,
            "tcp_timeout_max_retrans" => &mut t.max_retrans,
            "tcp_timeout_unacknowledged" => &mut t.unacknowledged,
            "udp_timeout" => &mut self.udp,
            "udp_timeout_stream" => &mut self.udp_stream,
            "icmp_timeout" => &mut self.icmp,
            "icmpv6_timeout" => &mut self.icmpv6,
            "gre_timeout" => &mut self.gre,
            "gre_timeout_stream" => &mut self.gre_stream,
            "generic_timeout" => &mut self.generic,
            _ => return None,
        })
    }
}
