//! Which tracked connections a request is about: the filter options of conntrack(8), on the command line and in a request.

use hibernet_netstack::conntrack::Filter;
use hibernet_netstack::conntrack::filter::{AddrArg, FilterError, MarkArg, NatArg, ProtoArg, StateArg, StatusArg};
use hibernet_netstack::iptables::Family;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Connections for which everything holds that is given; all, if nothing is. Values are written as in conntrack(8).
#[derive(clap::Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Which connections")]
pub struct Which {
    /// Of this network protocol [default: both]
    #[arg(short, long)]
    pub family: Option<NetworkOf>,
    /// Of this protocol, by name or number
    #[arg(short, long, visible_alias = "protonum", value_name = "PROTOCOL", value_parser = valid::<ProtoArg>)]
    pub proto: Option<String>,
    /// Source address or network of the first direction
    #[arg(short, long, visible_alias = "orig-src", value_name = "NET", value_parser = valid::<AddrArg>)]
    pub src: Option<String>,
    /// Destination of the first direction
    #[arg(short, long, visible_alias = "orig-dst", value_name = "NET", value_parser = valid::<AddrArg>)]
    pub dst: Option<String>,
    /// Source of the reply direction
    #[arg(short, long, value_name = "NET", value_parser = valid::<AddrArg>)]
    pub reply_src: Option<String>,
    /// Destination of the reply direction
    #[arg(short = 'q', long, value_name = "NET", value_parser = valid::<AddrArg>)]
    pub reply_dst: Option<String>,
    /// Source port of the first direction
    #[arg(long, visible_alias = "orig-port-src", value_name = "PORT")]
    pub sport: Option<u16>,
    /// Destination port of the first direction
    #[arg(long, visible_alias = "orig-port-dst", value_name = "PORT")]
    pub dport: Option<u16>,
    /// Source port of the reply direction
    #[arg(long, value_name = "PORT")]
    pub reply_port_src: Option<u16>,
    /// Destination port of the reply direction
    #[arg(long, value_name = "PORT")]
    pub reply_port_dst: Option<u16>,
    /// ICMP type of the first direction
    #[arg(long, value_name = "N")]
    pub icmp_type: Option<u8>,
    /// ICMP code of the first direction
    #[arg(long, value_name = "N")]
    pub icmp_code: Option<u8>,
    /// ICMP identifier
    #[arg(long, value_name = "N")]
    pub icmp_id: Option<u16>,
    /// TCP state
    #[arg(long, value_name = "STATE", value_parser = valid::<StateArg>)]
    pub state: Option<String>,
    /// Connection mark
    #[arg(short, long, value_name = "VALUE[/MASK]", value_parser = valid::<MarkArg>)]
    pub mark: Option<String>,
    /// Status, such as ASSURED, SEEN_REPLY or UNSET
    #[arg(short = 'u', long, value_name = "STATUS", value_parser = valid::<StatusArg>)]
    pub status: Option<String>,
    /// Zone in both directions
    #[arg(short = 'w', long)]
    pub zone: Option<u16>,
    /// Zone in the first direction
    #[arg(long, value_name = "ZONE")]
    pub orig_zone: Option<u16>,
    /// Zone in the reply direction
    #[arg(long, value_name = "ZONE")]
    pub reply_zone: Option<u16>,
    /// Source translated, to this address if it is given
    #[arg(short = 'n', long, value_name = "ADDR[:PORT]", num_args = 0..=1, default_missing_value = "", value_parser = valid::<NatArg>)]
    pub src_nat: Option<String>,
    /// Destination translated, to this address if it is given
    #[arg(short = 'g', long, value_name = "ADDR[:PORT]", num_args = 0..=1, default_missing_value = "", value_parser = valid::<NatArg>)]
    pub dst_nat: Option<String>,
    /// Source or destination translated
    #[arg(short = 'j', long, value_name = "ADDR[:PORT]", num_args = 0..=1, default_missing_value = "", value_parser = valid::<NatArg>)]
    pub any_nat: Option<String>,
}

/// A network protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum NetworkOf {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// A value that can be read as a `T`, as it was written.
fn valid<T: FromStr<Err = FilterError>>(s: &str) -> Result<String, FilterError> {
    s.parse::<T>().map(|_| s.to_owned())
}

fn read<T: FromStr<Err = FilterError>>(s: &Option<String>) -> Result<Option<T>, FilterError> {
    s.as_deref().map(str::parse).transpose()
}

impl TryFrom<&Which> for Filter {
    type Error = FilterError;

    fn try_from(w: &Which) -> Result<Filter, FilterError> {
        Ok(Filter {
            family: w.family.map(|f| if f == NetworkOf::Ipv6 { Family::V6 } else { Family::V4 }),
            proto: read::<ProtoArg>(&w.proto)?,
            src: read::<AddrArg>(&w.src)?,
            dst: read::<AddrArg>(&w.dst)?,
            reply_src: read::<AddrArg>(&w.reply_src)?,
            reply_dst: read::<AddrArg>(&w.reply_dst)?,
            sport: w.sport,
            dport: w.dport,
            reply_sport: w.reply_port_src,
            reply_dport: w.reply_port_dst,
            icmp_type: w.icmp_type,
            icmp_code: w.icmp_code,
            icmp_id: w.icmp_id,
            state: read::<StateArg>(&w.state)?,
            mark: read::<MarkArg>(&w.mark)?,
            status: read::<StatusArg>(&w.status)?,
            zone: w.zone,
            orig_zone: w.orig_zone,
            reply_zone: w.reply_zone,
            src_nat: read::<NatArg>(&w.src_nat)?,
            dst_nat: read::<NatArg>(&w.dst_nat)?,
            any_nat: read::<NatArg>(&w.any_nat)?,
        })
    }
}
