//! Random tests that remember earlier packets, or look them up: sets, addresses seen lately, counts, rates.

use super::rules::{Place, Writer};
use crate::netfilter::{Side, elsewhere, node, router};
use core::fmt::Write;

/// Names of sets: addresses, nets, addresses with ports.
const SETS: [&str; 3] = ["ips", "nets", "ends"];

impl Writer<'_> {
    /// Sets that rules may name.
    pub(super) fn sets(&self) -> String {
        let v6 = self.v6;
        let family = if v6 { " family inet6" } else { "" };
        let (c, s) = (node(Side::Client, v6), node(Side::Server, v6));
        let (own, far) = (router(Side::Server, v6), elsewhere(1, v6));
        let len = if v6 { 64 } else { 24 };
        format!(
            "create ips hash:ip{family} counters\nadd ips {c}\nadd ips {own}\n\
             create nets hash:net{family}\nadd nets {s}/{len}\nadd nets {s} nomatch\nadd nets {far}\n\
             create ends hash:ip,port{family}\nadd ends {s},tcp:80\nadd ends {s},udp:53\nadd ends {c},udp:40000\n"
        )
    }

    /// A set with the parts of a packet that it is asked about.
    fn set(&mut self) -> String {
        let set = self.pick(&SETS);
        let dirs = if set == "ends" { self.pick(&["src,src", "dst,dst", "dst,src"]) } else { self.pick(&["src", "dst"]) };
        format!("{set} {dirs}")
    }

    /// `SET`.
    pub(super) fn change_set(&mut self) -> Option<String> {
        if !self.has_sets {
            return None;
        }
        let set = self.set();
        Some(match self.r.below(3) {
            0 => format!(" -j SET --del-set {set}"),
            1 => format!(" -j SET --add-set {set} --exist"),
            _ => format!(" -j SET --add-set {set}"),
        })
    }

    /// Names of a ruleset are its own: the kernel keeps a table while rules are replaced that name it.
    fn name(&mut self, kind: &str) -> String {
        let n = self.r.below(3);
        format!("{kind}{n}-{:x}", self.names)
    }

    /// A match of this kind. Before tracking there is nothing to be counted of connections.
    pub(super) fn remembering(&mut self, table: &str, place: Place) -> Option<String> {
        let not = self.not(25);
        let tracked = table != "raw";
        let mut m = String::new();
        match self.r.below(8) {
            0 | 1 if self.has_sets => {
                let set = self.set();
                write!(m, " -m set {not}--match-set {set}").ok();
                match self.r.below(6) {
                    0 => m += " --return-nomatch",
                    1 if set.starts_with("ips") => write!(m, " --packets-gt {}", self.r.below(6)).unwrap_or_default(),
                    2 if set.starts_with("ips") => m += " ! --update-counters --bytes-lt 200",
                    _ => {}
                }
            }
            2 | 3 => {
                let name = self.name("r");
                let action = self.pick(&["set", "set", "rcheck", "update", "remove"]);
                let hits = if matches!(action, "rcheck" | "update") && self.r.chance(40) {
                    format!(" --hitcount {}", self.r.range(1, 6))
                } else {
                    String::new()
                };
                let side = self.pick(&["rsource", "rdest"]);
                write!(m, " -m recent {not}--{action}{hits} --name {name} --{side}").ok();
            }
            4 if tracked => {
                let (of, n) = (self.pick(&["upto", "above"]), self.r.below(5));
                let side = self.pick(&["saddr", "daddr"]);
                let mask = self.pick(&[0, 8, if self.v6 { 128 } else { 32 }]);
                // (First packets only. 6.18 drops those of ASSURED connections where all that it counted are over, and where it finds the packet's own it looks
                // no further for others that are.)
                write!(
                    m,
                    " -m conntrack --ctstate NEW ! --ctstatus CONFIRMED -m connlimit --connlimit-{of} {n} --connlimit-mask {mask} --connlimit-{side}"
                )
                .ok();
            }
            5 | 6 => {
                let name = self.name("h");
                let (of, burst) = (self.pick(&["upto", "above"]), self.r.range(1, 7));
                let mode =
                    self.pick(&["", "srcip", "dstip", "srcport", "dstport", "srcip,dstport", "srcip,srcport,dstip,dstport"]);
                write!(m, " -m hashlimit --hashlimit-{of} 1/hour --hashlimit-burst {burst} --hashlimit-name {name}").ok();
                if !mode.is_empty() {
                    write!(m, " --hashlimit-mode {mode}").ok();
                }
                if mode.contains("srcip") && self.r.chance(30) {
                    write!(m, " --hashlimit-srcmask {}", self.pick(&[0, 8, 24])).ok();
                }
            }
            7 if tracked => {
                let (what, ranges): (_, &[&str]) = match self.r.below(3) {
                    0 => ("packets", &["1", "2:3", "4", ":2", "1:1"]),
                    1 => ("bytes", &["60", "100:400", "1000", ":80"]),
                    _ => ("avgpkt", &["40", "60:100", ":50", "200"]),
                };
                let (range, dir) = (self.pick(ranges), self.pick(&["original", "reply", "both"]));
                write!(m, " -m connbytes {not}--connbytes {range} --connbytes-mode {what} --connbytes-dir {dir}").ok();
            }
            _ if place == Place::PreRouting && matches!(table, "raw" | "mangle") => {
                m += " -m rpfilter";
                for option in ["--loose", "--invert", "--accept-local", "--validmark"] {
                    if self.r.chance(30) {
                        write!(m, " {option}").ok();
                    }
                }
            }
            _ => return None,
        }
        Some(m)
    }
}
