//! Which chain leads to which: names resolved, loops found, the depth of calls.

use super::{RuleError, RuleFault, at};
use crate::iptables::{Hook, Table, Target};
use std::collections::BTreeMap;

/// One jump or goto.
#[derive(Clone, Copy, Debug)]
pub(in crate::iptables) struct Link {
    /// Rule of the calling chain.
    pub(in crate::iptables) rule: usize,
    /// Chain that is called.
    pub(in crate::iptables) chain: usize,
    /// Returns to the rule behind this one.
    pub(in crate::iptables) jump: bool,
}

/// Chains of a table, by their number in it.
#[derive(Debug)]
pub(in crate::iptables) struct Graph {
    /// Calls in the order of their rules.
    pub(in crate::iptables) links: Vec<Vec<Link>>,
    hooks: Vec<Option<Hook>>,
    /// Hooks from which a chain can be reached, as bits.
    from: Vec<u8>,
    /// Most calls that can be open at a time.
    pub(in crate::iptables) depth: usize,
}

/// What is known of a chain while calls are followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    No,
    /// Its calls are being followed.
    Open,
    Done,
}

impl Graph {
    pub(super) fn new(table: &Table) -> Result<Graph, RuleError> {
        let hooks = built_in(table)?;
        let mut names = BTreeMap::new();
        for (c, chain) in table.chains.iter().enumerate() {
            if names.insert(chain.name.as_str(), c).is_some() {
                return Err(at(table, c, None, RuleFault::DuplicateChain));
            }
        }
        let mut links = Vec::new();
        for (c, chain) in table.chains.iter().enumerate() {
            let mut calls = Vec::new();
            for (rule, r) in chain.rules.iter().enumerate() {
                let (name, jump) = match &r.target {
                    Target::Jump(name) => (name, true),
                    Target::Goto(name) => (name, false),
                    _ => continue,
                };
                let fail = |fault| at(table, c, Some(rule), fault);
                let chain = *names.get(name.as_str()).ok_or_else(|| fail(RuleFault::NoChain(name.clone())))?;
                if hooks[chain].is_some() {
                    return Err(fail(RuleFault::BuiltIn(name.clone())));
                }
                calls.push(Link { rule, chain, jump });
            }
            links.push(calls);
        }
        let mut graph = Graph { from: vec![0; links.len()], links, hooks, depth: 0 };
        graph.follow(table)?;
        Ok(graph)
    }

    /// The hook whose built-in chain this is.
    pub(in crate::iptables) fn hook(&self, chain: usize) -> Option<Hook> {
        self.hooks[chain]
    }

    /// The hooks from which a chain is reached.
    pub(super) fn reached_from(&self, chain: usize) -> u8 {
        self.from[chain]
    }

    /// Follows all calls from the built-in chains. As in Linux, chains that nothing leads to may lead to themselves.
    fn follow(&mut self, table: &Table) -> Result<(), RuleError> {
        let mut visits = vec![Visit::No; self.links.len()];
        let mut depths = vec![0; self.links.len()];
        for root in 0..self.links.len() {
            if self.hooks[root].is_some() {
                self.descend(table, root, &mut visits, &mut depths)?;
                self.depth = self.depth.max(depths[root]);
                self.mark(root);
            }
        }
        Ok(())
    }

    /// Depth first, without recursion: chains may be thousands deep.
    fn descend(&self, table: &Table, root: usize, visits: &mut [Visit], depths: &mut [usize]) -> Result<(), RuleError> {
        let mut open = vec![(root, 0)];
        visits[root] = Visit::Open;
        while let Some((chain, next)) = open.last_mut() {
            let Some(link) = self.links[*chain].get(*next) else {
                let calls = &self.links[*chain];
                depths[*chain] = calls.iter().map(|l| depths[l.chain] + usize::from(l.jump)).max().unwrap_or(0);
                visits[*chain] = Visit::Done;
                open.pop();
                continue;
            };
            *next += 1;
            match visits[link.chain] {
                Visit::Done => {}
                Visit::No => {
                    visits[link.chain] = Visit::Open;
                    open.push((link.chain, 0));
                }
                Visit::Open => {
                    let (chain, rule) = (*chain, link.rule);
                    let way = open.iter().map(|(c, _)| *c).skip_while(|c| *c != link.chain).chain([link.chain]);
                    return Err(at(table, chain, Some(rule), RuleFault::Loop(path(table, way))));
                }
            }
        }
        Ok(())
    }

    /// Notes what a built-in chain leads to.
    fn mark(&mut self, root: usize) {
        let Some(bit) = self.hooks[root].map(|h| 1 << h as u8) else { return };
        let mut todo = vec![root];
        while let Some(chain) = todo.pop() {
            if self.from[chain] & bit == 0 {
                self.from[chain] |= bit;
                todo.extend(self.links[chain].iter().map(|l| l.chain));
            }
        }
    }
}

/// The built-in chains among the table's.
fn built_in(table: &Table) -> Result<Vec<Option<Hook>>, RuleError> {
    let hooks = table.name.hooks();
    let check = |(c, chain): (usize, &crate::iptables::Chain)| {
        let hook = hooks.iter().find(|h| h.chain() == chain.name).copied();
        if hook.is_some() == chain.policy.is_some() { Ok(hook) } else { Err(at(table, c, None, RuleFault::Policy(hooks))) }
    };
    table.chains.iter().enumerate().map(check).collect()
}

/// Names on a way, the middle of a long one left out.
fn path(table: &Table, way: impl Iterator<Item = usize>) -> String {
    let names: Vec<_> = way.map(|c| table.chains[c].name.as_str()).collect();
    match names.as_slice() {
        [first @ .., _, _] if first.len() > 6 => {
            let end = &names[names.len() - 2..];
            format!("{} -> … -> {}", first[..4].join(" -> "), end.join(" -> "))
        }
        _ => names.join(" -> "),
    }
}
