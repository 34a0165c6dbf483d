//! Options of a sandbox that joins another one's network.

use super::options::{EgressArg, LevelArg, NetOptions, first, usage};
use crate::control::lifecycle::Join;
use crate::control::protocol::Recheck;
use crate::sandbox::failure::Failure;
use crate::sandbox::plan::Plan;
use crate::sandbox::supervisor::JoinRequest;

impl NetOptions {
    /// The wish to join another sandbox's network, which has its own word on most options.
    ///
    /// # Errors
    ///
    /// [`Status::Usage`] with the first option that only the sandbox that is joined can follow.
    pub(super) fn join(&self, network: String, plan: &Plan) -> Result<JoinRequest, Failure> {
        let of_the_network = first(&[
            (!self.publish.is_empty(), "--publish"),
            (!self.map_host_loopback.is_empty(), "--map-host-loopback"),
            (!self.allow_host.is_empty(), "--allow-host"),
            (self.allow_metadata, "--allow-metadata"),
            (self.egress != EgressArg::Open, "--egress"),
            (self.rules.is_some(), "--rules"),
            (self.rules6.is_some(), "--rules6"),
            (self.recheck != Recheck::Keep, "--recheck"),
            (!self.sysctl.is_empty(), "--sysctl"),
            (!self.resolver.is_empty(), "--resolver"),
            (self.pcap.is_some(), "--pcap"),
            (self.log_level != LevelArg::Warning, "--log-level"),
            (self.log_json, "--log-json"),
            (self.log_file.is_some(), "--log-file"),
        ]);
        if let Some(option) = of_the_network {
            return Err(usage(format!("{option} is a matter of '{network}', whose network is joined; give it there")));
        }
        let alone = |option, needs| usage(format!("{option} with --join needs {needs}"));
        if self.gateway.is_some() && self.address.is_none() {
            return Err(alone("--gateway", "--address"));
        }
        if self.gateway6.is_some() && self.address6.is_none() {
            return Err(alone("--gateway6", "--address6"));
        }
        if let Some(a) = self.dns.iter().find(|a| if a.is_ipv4() { self.address.is_none() } else { self.address6.is_none() }) {
            return Err(alone("--dns", if a.is_ipv4() { "--address" } else { "--address6" }));
        }
        let (v4, v6) = (plan.config.v4.filter(|_| self.address.is_some()), plan.config.v6.filter(|_| self.address6.is_some()));
        let wish = Join { name: String::new(), v4, v6, no_v4: plan.config.v4.is_none(), no_v6: plan.config.v6.is_none() };
        Ok(JoinRequest { network, wish })
    }
}
