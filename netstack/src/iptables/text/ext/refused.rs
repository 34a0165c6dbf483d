//! Matches and targets of Linux that are not supported, with the reason.

const NOT_YET: &str = "this version does not have it";
const NO_PLACE: &str = "it has no meaning here";
const BRIDGE: &str = "there is no bridge here";
const NO_QUEUE: &str = "there is no program to hand packets to";
const NO_SOCKETS: &str = "the sockets of the guest are not ours to look at";
const NO_IPSEC: &str = "there is no IPsec here";
const NO_SHAPING: &str = "there is no traffic shaping here";
const NO_LABELS: &str = "there are no security labels here";
const NO_CGROUPS: &str = "the guest's processes are not known here";
const NO_ROUTES: &str = "routes have no realms here";

#[rustfmt::skip]
const MATCHES: &[(&str, &str)] = &[
    ("ah", NOT_YET), ("bpf", NOT_YET), ("cgroup", NO_CGROUPS), ("cluster", NO_PLACE), ("connbytes", NOT_YET),
    ("connlabel", NOT_YET), ("connlimit", NOT_YET), ("cpu", NO_PLACE), ("dccp", NOT_YET), ("devgroup", NO_PLACE),
    ("dscp", NOT_YET), ("dst", NOT_YET), ("ecn", NOT_YET), ("esp", NOT_YET), ("eui64", NOT_YET), ("frag", NOT_YET),
    ("hashlimit", NOT_YET), ("hbh", NOT_YET), ("helper", "there are no helpers here"), ("hl", NOT_YET),
    ("ipcomp", NOT_YET), ("ipv6header", NOT_YET), ("ipvs", NO_PLACE), ("length", NOT_YET), ("mh", NOT_YET),
    ("nfacct", NO_PLACE), ("osf", NOT_YET), ("physdev", BRIDGE), ("pkttype", NOT_YET), ("policy", NO_IPSEC),
    ("quota", NOT_YET), ("quota2", NOT_YET), ("rateest", NO_SHAPING), ("realm", NO_ROUTES), ("recent", NOT_YET),
    ("rpfilter", NOT_YET), ("rt", NOT_YET), ("sctp", NOT_YET), ("set", NOT_YET), ("socket", NO_SOCKETS),
    ("srh", NOT_YET), ("string", NOT_YET), ("tcpmss", NOT_YET), ("time", NOT_YET), ("tos", NOT_YET), ("ttl", NOT_YET),
    ("u32", NOT_YET), ("udplite", NOT_YET), ("unclean", NO_PLACE),
];

#[rustfmt::skip]
const TARGETS: &[(&str, &str)] = &[
    ("AUDIT", NO_LABELS), ("CHECKSUM", NOT_YET), ("CLASSIFY", NO_SHAPING), ("CLUSTERIP", NO_PLACE),
    ("CONNSECMARK", NO_LABELS), ("DNPT", NOT_YET), ("DSCP", NOT_YET), ("ECN", NOT_YET), ("HL", NOT_YET),
    ("HMARK", NO_PLACE), ("IDLETIMER", NO_PLACE), ("LED", NO_PLACE), ("MIRROR", NO_PLACE), ("NFLOG", NOT_YET),
    ("NFQUEUE", NO_QUEUE), ("QUEUE", NO_QUEUE), ("RATEEST", NO_SHAPING), ("SAME", NO_PLACE), ("SECMARK", NO_LABELS),
    ("SET", NOT_YET), ("SNPT", NOT_YET), ("SYNPROXY", NOT_YET), ("TARPIT", NO_PLACE), ("TCPMSS", NOT_YET),
    ("TCPOPTSTRIP", NOT_YET), ("TEE", NO_PLACE), ("TOS", NOT_YET), ("TPROXY", NO_SOCKETS), ("TRACE", NOT_YET),
    ("TTL", NOT_YET), ("ULOG", NO_QUEUE),
];

fn reason(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    table.iter().find(|e| e.0 == name).map(|e| e.1)
}

/// Why a match of Linux is not supported; `None` if Linux does not have it either, or it is.
pub(in super::super) fn refused_match(name: &str) -> Option<&'static str> {
    reason(MATCHES, name)
}

/// The same of a target.
pub(in super::super) fn refused_target(name: &str) -> Option<&'static str> {
    reason(TARGETS, name)
}
