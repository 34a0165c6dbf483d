//! What `hibernet list` knows of a network.

use super::Network;
use crate::cli::values::publish_text;
use crate::control::registry::{Entry, Registration};
use crate::sandbox::failure::complain;
use hibernet_netstack::Config;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

/// The guest's addresses.
pub(crate) fn addresses_of(config: &Config) -> Vec<IpAddr> {
    let v4 = config.v4.map(|c| IpAddr::V4(c.guest));
    let v6 = config.v6.map(|c| IpAddr::V6(c.guest));
    v4.into_iter().chain(v6).collect()
}

impl Network {
    /// Lets `hibernet list` know.
    pub(super) fn list(&mut self, registration: Option<&mut Registration>) {
        let is_new = self.state != self.listed.0;
        let config = std::mem::take(&mut self.relist).then_some(&self.kit.plan.config);
        if (self.state, self.worker()) == self.listed && config.is_none() {
            return;
        }
        self.listed = (self.state, self.worker());
        let (state, since) = (self.state, SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()));
        let worker = self.worker().map_or(0, |p| p.as_raw_nonzero().get());
        let asleep = self.holder.as_ref().map(|h| h.about.clone());
        let change = |e: &mut Entry| {
            (e.state, e.worker, e.asleep) = (state, worker, asleep);
            if let Some(c) = config {
                e.addresses = addresses_of(c);
                e.publish = c.publish.iter().map(publish_text).collect();
            }
            if is_new {
                e.since = since;
            }
        };
        if let Err(e) = registration.map_or(Ok(()), |r| r.update(change)) {
            complain(format_args!("warning: {e}; `list` does not know that the network is {state}"));
        }
    }
}
