//! Random tests of packets, and random changes to them.

use super::rules::{Place, Writer};

impl Writer<'_> {
    /// A match that looks at the packet alone.
    pub(super) fn packet(&mut self, proto: &str, place: Place) -> String {
        let not = self.not(25);
        let hop = if self.v6 { "hl" } else { "ttl" };
        // The router's own packets have no checksum yet, and what the identification is by chance.
        let late = matches!(place, Place::Output | Place::PostRouting | Place::User);
        match self.r.below(16) {
            0 => format!(" -m {hop} {not}--{hop}-eq {}", self.pick(&[62, 63, 64, 1])),
            1 => format!(" -m {hop} --{hop}-{} {}", self.pick(&["lt", "gt"]), self.pick(&[2, 60, 63])),
            2 | 3 => format!(" -m length {not}--length {}", self.pick(&["40", "28:60", ":80", "100:", "64:1400", "90:20"])),
            4 => format!(" -m tos {not}--tos {}", self.pick(&["0x10/0xff", "0x10", "Normal-Service", "0x0/0xfc", "0xc0/0xe0"])),
            5 => format!(" -m dscp {not}--dscp {}", self.pick(&["0", "4", "0x2e", "48"])),
            6 => format!(" -m ecn {not}--ecn-ip-ect {}", self.r.below(4)),
            7 => format!(" -m pkttype {not}--pkt-type {}", self.pick(&["unicast", "multicast", "broadcast"])),
            8 if proto == "tcp" => format!(" -m tcpmss {not}--mss {}", self.pick(&["1460", ":1400", "1000:2000"])),
            9 if proto == "tcp" => format!(" -m ecn {not}--ecn-tcp-{}", self.pick(&["ece", "cwr"])),
            8 if proto == "50" => format!(" -m esp {not}--espspi {}", self.pick(&["0", "1:9", "5:"])),
            8 if proto == "ah" => format!(" -m ah {not}--ahspi {}", self.pick(&["0", "1:2", "3:"])),
            8 if proto == "ipcomp" => format!(" -m ipcomp {not}--ipcompspi {}", self.pick(&["0", "1:2", "3:"])),
            8 if proto == "mh" => format!(" -m mh {not}--mh-type {}", self.pick(&["0", "1:2", "3:"])),
            8 | 9 if proto == "sctp" => {
                let how = self.pick(&["any", "all", "only"]);
                let chunks = self.pick(&["DATA", "DATA,SACK", "INIT", "DATA:Be", "ALL", "NONE", "SACK,ABORT"]);
                let port = self.pick(&["", " --sport 5000", " --dport 80:81"]);
                format!(" -m sctp{port} {not}--chunk-types {how} {chunks}")
            }
            10 if self.v6 && matches!(place, Place::PreRouting | Place::Input | Place::Forward) && self.r.chance(30) => {
                " -m eui64".into()
            }
            10 if self.v6 => self
                .pick(&[" -m hbh", " -m dst", " -m rt --rt-type 0", " -m frag", " -m ipv6header --header protocol --soft"])
                .into(),
            11 | 12 => {
                let text = self.pick(&["0123", "cdef01", "abc"]);
                let span = self.pick(&["", " --from 30", " --to 80", " --from 40 --to 60"]);
                format!(" -m string {not}--string {text} --algo {}{span}", self.pick(&["bm", "kmp"]))
            }
            13 if !late => {
                let test = if self.v6 {
                    self.pick(&["4>>8&0xff=6,17", "4&0xff=64", "40>>16=0:2000", "40&0xffff=53,80&&4>>16=1:200"])
                } else {
                    self.pick(&[
                        "8>>16&0xff=6,17",
                        "8>>24=64",
                        "0>>22&0x3C@0>>16=0:2000",
                        "0>>22&0x3C@0&0xffff=53,80&&0&0xffff=1:200",
                    ])
                };
                format!(" -m u32 {not}--u32 \"{test}\"")
            }
            14 => " -m time --datestart 2020-01-01 --datestop 2037-01-01".into(),
            _ => format!(" -m length --length {}:{}", self.r.below(60), self.r.range(60, 900)),
        }
    }

    /// A target of the mangle table that changes the packet.
    pub(super) fn change(&mut self, proto: &str, place: Place) -> String {
        let (target, hop) = if self.v6 { ("HL", "hl") } else { ("TTL", "ttl") };
        match self.r.below(8) {
            0 => format!(" -j {target} --{hop}-set {}", self.pick(&[1, 2, 64, 200])),
            1 => format!(" -j {target} --{hop}-{} {}", self.pick(&["inc", "dec"]), self.pick(&[1, 5, 255])),
            2 | 3 => format!(
                " -j TOS --{}",
                self.pick(&["set-tos 0x10", "set-tos 0x8/0x3c", "or-tos 3", "xor-tos 0x55", "and-tos 0xf0"])
            ),
            4 => format!(" -j DSCP --set-dscp {}", self.pick(&[0, 10, 63])),
            5 => " -j CHECKSUM --checksum-fill".into(),
            6 if proto == "tcp" => {
                // (Clamping goes by what the kernel learnt of paths from ICMP errors to itself; ours knows links only.)
                let to = self.pick(&["--set-mss 700", "--clamp-mss-to-pmtu"]);
                let clamp = matches!(place, Place::Forward | Place::Output | Place::PostRouting);
                let to = if clamp { to } else { "--set-mss 700" };
                format!(" -m tcp --tcp-flags SYN,RST SYN -j TCPMSS {to}")
            }
            _ => format!(" -j DSCP --set-dscp-class {}", self.pick(&["EF", "AF21", "CS0"])),
        }
    }
}
