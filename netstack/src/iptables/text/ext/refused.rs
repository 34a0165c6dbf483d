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

const NO_PROGRAMS: &str = "programs of the kernel's are not run here";
const NO_CT_LABELS: &str = "connections have no labels here";
const NO_LISTS: &str = "there is no list of systems here";
const NO_HANDSHAKES: &str = "handshakes are not answered in another's place here";
const STATELESS: &str = "addresses are translated by connection here: use NETMAP";

#[rustfmt::skip]
const MATCHES: &[(&str, &str)] = &[
    ("bpf", NO_PROGRAMS), ("cgroup", NO_CGROUPS), ("cluster", NO_PLACE), 
    ("connlabel", NO_CT_LABELS), ("cpu", NO_PLACE), ("dccp", NOT_YET), ("devgroup", NO_PLACE),
    ("helper", "there are no helpers here"), ("ipvs", NO_PLACE), ("nfacct", NO_PLACE),
    ("osf", NO_LISTS), ("physdev", BRIDGE), ("policy", NO_IPSEC), ("quota", NOT_YET), ("quota2", NOT_YET),
    ("rateest", NO_SHAPING), ("realm", NO_ROUTES), ("socket", NO_SOCKETS),
    ("srh", NOT_YET), ("udplite", NOT_YET), ("unclean", NO_PLACE),
];

#[rustfmt::skip]
const TARGETS: &[(&str, &str)] = &[
    ("AUDIT", NO_LABELS), ("CLASSIFY", NO_SHAPING), ("CLUSTERIP", NO_PLACE), ("CONNSECMARK", NO_LABELS), ("DNPT", STATELESS),
    ("ECN", NOT_YET), ("HMARK", NO_PLACE), ("IDLETIMER", NO_PLACE), ("LED", NO_PLACE), ("MIRROR", NO_PLACE),
    ("NFQUEUE", NO_QUEUE), ("QUEUE", NO_QUEUE), ("RATEEST", NO_SHAPING), ("SAME", NO_PLACE), ("SECMARK", NO_LABELS),
    ("SNPT", STATELESS), ("SYNPROXY", NO_HANDSHAKES), ("TARPIT", NO_PLACE), ("TCPOPTSTRIP", NOT_YET),
    ("TEE", NO_PLACE), ("TPROXY", NO_SOCKETS), ("ULOG", NO_QUEUE),
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
