//! A table while commands change it.

use super::error::ErrorKind;
use super::print::print_rule;
use crate::iptables::{Chain, Counters, Family, Policy, Rule, Table, TableName, Target};
use siphasher::sip::SipHasher13;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};

/// A rule. Which chain it leads to is kept by place, so that renaming a chain costs nothing.
#[derive(PartialEq)]
struct WorkRule {
    /// Without counters, and with an empty name where `leads_to` is.
    rule: Rule,
    leads_to: Option<usize>,
}

impl WorkRule {
    /// The same for rules that are the same.
    fn fingerprint(&self) -> u64 {
        let mut text = String::new();
        print_rule(Family::V4, "", &self.rule, &mut text);
        let mut hash = SipHasher13::new();
        (text, self.leads_to).hash(&mut hash);
        hash.finish()
    }
}

struct Entry {
    counters: Counters,
    /// Line of the text on which it stands; 0 if it was there before.
    line: u32,
    work: WorkRule,
}

struct WorkChain {
    name: String,
    policy: Option<Policy>,
    counters: Counters,
    /// Boxed, so that inserting moves little.
    rules: VecDeque<Box<Entry>>,
    /// A fingerprint of each rule, as soon as one was looked for: looking for many takes little time then.
    prints: Option<VecDeque<u64>>,
    /// How many rules lead here.
    uses: u32,
}

impl WorkChain {
    fn insert(&mut self, place: usize, entry: Box<Entry>) {
        if let Some(prints) = &mut self.prints {
            prints.insert(place, entry.work.fingerprint());
        }
        self.rules.insert(place, entry);
    }

    fn remove(&mut self, place: usize) -> Option<Box<Entry>> {
        if let Some(prints) = &mut self.prints {
            prints.remove(place);
        }
        self.rules.remove(place)
    }

    fn flush(&mut self) -> VecDeque<Box<Entry>> {
        self.prints = None;
        std::mem::take(&mut self.rules)
    }

    /// Place of the first rule that is the same but for its counters.
    fn position(&mut self, wanted: &WorkRule) -> Option<usize> {
        let rules = &self.rules;
        let prints = self.prints.get_or_insert_with(|| rules.iter().map(|e| e.work.fingerprint()).collect());
        let print = wanted.fingerprint();
        let mut alike = prints.iter().enumerate().filter(|(_, p)| **p == print).map(|(place, _)| place);
        alike.find(|place| rules.get(*place).is_some_and(|e| e.work == *wanted))
    }
}

/// A table while commands change it. Chains are named by numbers that stay the same.
pub(super) struct WorkTable {
    name: TableName,
    /// Places of deleted chains stay empty.
    chains: Vec<Option<WorkChain>>,
    index: BTreeMap<String, usize>,
    rules: usize,
}

impl WorkTable {
    pub fn new(table: Table) -> Self {
        let mut work = Self { name: table.name, chains: Vec::new(), index: BTreeMap::new(), rules: 0 };
        let mut contents = Vec::new();
        for Chain { name, policy, counters, rules } in table.chains {
            let id = work.add(name, policy, counters);
            contents.push((id, rules));
        }
        for (id, rules) in contents {
            rules.into_iter().for_each(|rule| work.append(id, rule, 0));
        }
        work
    }

    /// The table, its own chains in the order of their names, and the lines on which the rules of each chain stand.
    pub fn finish(mut self) -> (Table, BTreeMap<String, Vec<u32>>) {
        let mut lines = BTreeMap::new();
        let names: Vec<String> = self.chains.iter().map(|c| c.as_ref().map_or_else(String::new, |c| c.name.clone())).collect();
        let mut chains: Vec<Chain> = Vec::new();
        for chain in self.chains.drain(..).flatten() {
            lines.insert(chain.name.clone(), chain.rules.iter().map(|e| e.line).collect());
            let back = |entry: Box<Entry>| {
                let Entry { counters, work: WorkRule { mut rule, leads_to }, .. } = *entry;
                rule.counters = counters;
                if let (Some(to), Target::Jump(name) | Target::Goto(name)) = (leads_to, &mut rule.target) {
                    name.clone_from(&names[to]);
                }
                rule
            };
            let rules = chain.rules.into_iter().map(back).collect();
            chains.push(Chain { name: chain.name, policy: chain.policy, counters: chain.counters, rules });
        }
        let order = |c: &Chain| self.name.built_in().iter().position(|n| *n == c.name).unwrap_or(usize::MAX);
        chains.sort_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.name.cmp(&b.name)));
        (Table { name: self.name, chains }, lines)
    }

    pub fn name(&self) -> TableName {
        self.name
    }

    /// How many rules there are.
    pub fn rules(&self) -> usize {
        self.rules
    }

    pub fn is_built_in(&self, chain: &str) -> bool {
        self.name.built_in().contains(&chain)
    }

    pub fn find(&self, chain: &str) -> Option<usize> {
        self.index.get(chain).copied()
    }

    fn add(&mut self, name: String, policy: Option<Policy>, counters: Counters) -> usize {
        let id = self.chains.len();
        self.index.insert(name.clone(), id);
        self.chains.push(Some(WorkChain { name, policy, counters, rules: VecDeque::new(), prints: None, uses: 0 }));
        id
    }

    /// Makes a chain.
    pub fn create(&mut self, name: &str) {
        self.add(name.to_owned(), None, Counters::default());
    }

    fn chain(&mut self, id: usize) -> Option<&mut WorkChain> {
        self.chains.get_mut(id).and_then(Option::as_mut)
    }

    /// Takes every rule and every chain that is not built in away.
    pub fn clear(&mut self) {
        self.flush_all();
        let built_in = self.name.built_in();
        self.index.retain(|name, _| built_in.contains(&name.as_str()));
        for chain in &mut self.chains {
            if chain.as_ref().is_some_and(|c| !built_in.contains(&c.name.as_str())) {
                *chain = None;
            }
        }
    }

    pub fn flush(&mut self, id: usize) {
        let rules = self.chain(id).map(WorkChain::flush).unwrap_or_default();
        rules.iter().for_each(|e| self.removed(&e.work));
    }

    pub fn flush_all(&mut self) {
        (0..self.chains.len()).for_each(|id| self.flush(id));
    }

    pub fn zero(&mut self, id: usize) {
        if let Some(chain) = self.chain(id) {
            chain.counters = Counters::default();
            chain.rules.iter_mut().for_each(|e| e.counters = Counters::default());
        }
    }

    pub fn zero_all(&mut self) {
        (0..self.chains.len()).for_each(|id| self.zero(id));
    }

    pub fn zero_rule(&mut self, id: usize, place: usize) -> Result<(), ErrorKind> {
        let there = self.len(id);
        match self.chain(id).and_then(|c| c.rules.get_mut(place)) {
            Some(entry) => {
                entry.counters = Counters::default();
                Ok(())
            }
            None => Err(ErrorKind::NoSuchRule(there)),
        }
    }

    pub fn set_policy(&mut self, id: usize, policy: Policy, counters: Counters) {
        if let Some(chain) = self.chain(id) {
            chain.policy = Some(policy);
            chain.counters = counters;
        }
    }

    /// Deletes a chain that is empty and to which nothing leads.
    pub fn delete_chain(&mut self, id: usize) -> Result<(), ErrorKind> {
        let built_in = self.name.built_in();
        let Some(chain) = self.chain(id) else { return Ok(()) };
        if built_in.contains(&chain.name.as_str()) {
            Err(ErrorKind::BuiltIn)
        } else if chain.uses > 0 {
            Err(ErrorKind::ChainInUse(chain.uses))
        } else if !chain.rules.is_empty() {
            Err(ErrorKind::ChainNotEmpty)
        } else {
            let name = std::mem::take(&mut chain.name);
            self.index.remove(&name);
            self.chains[id] = None;
            Ok(())
        }
    }

    /// Deletes every chain that is not built in.
    pub fn delete_all(&mut self) -> Result<(), ErrorKind> {
        let built_in = self.name.built_in();
        let own = |c: &Option<WorkChain>| c.as_ref().is_some_and(|c| !built_in.contains(&c.name.as_str()));
        let own: Vec<usize> = (0..self.chains.len()).filter(|id| own(&self.chains[*id])).collect();
        own.into_iter().try_for_each(|id| self.delete_chain(id))
    }

    pub fn rename(&mut self, id: usize, to: &str) -> Result<(), ErrorKind> {
        let built_in = self.name.built_in();
        let Some(chain) = self.chain(id) else { return Ok(()) };
        if built_in.contains(&chain.name.as_str()) {
            return Err(ErrorKind::BuiltIn);
        }
        let from = std::mem::replace(&mut chain.name, to.to_owned());
        self.index.remove(&from);
        self.index.insert(to.to_owned(), id);
        Ok(())
    }

    fn len(&self, id: usize) -> usize {
        self.chains.get(id).and_then(Option::as_ref).map_or(0, |c| c.rules.len())
    }

    /// A rule as it is kept here.
    fn entry(&self, mut rule: Rule, line: u32) -> Box<Entry> {
        let counters = std::mem::take(&mut rule.counters);
        let leads_to = match &mut rule.target {
            Target::Jump(name) | Target::Goto(name) => {
                let id = self.index.get(name.as_str()).copied();
                if id.is_some() {
                    *name = String::new();
                }
                id
            }
            _ => None,
        };
        Box::new(Entry { counters, line, work: WorkRule { rule, leads_to } })
    }

    fn added(&mut self, leads_to: Option<usize>) {
        self.rules += 1;
        if let Some(chain) = leads_to.and_then(|to| self.chain(to)) {
            chain.uses += 1;
        }
    }

    fn removed(&mut self, rule: &WorkRule) {
        self.rules -= 1;
        if let Some(chain) = rule.leads_to.and_then(|to| self.chain(to)) {
            chain.uses -= 1;
        }
    }

    pub fn append(&mut self, id: usize, rule: Rule, line: u32) {
        let entry = self.entry(rule, line);
        let leads_to = entry.work.leads_to;
        if let Some(chain) = self.chain(id) {
            chain.insert(chain.rules.len(), entry);
            self.added(leads_to);
        }
    }

    pub fn insert(&mut self, id: usize, place: usize, rule: Rule, line: u32) -> Result<(), ErrorKind> {
        let there = self.len(id);
        if place > there {
            return Err(ErrorKind::NoSuchRule(there));
        }
        let entry = self.entry(rule, line);
        let leads_to = entry.work.leads_to;
        if let Some(chain) = self.chain(id) {
            chain.insert(place, entry);
            self.added(leads_to);
        }
        Ok(())
    }

    pub fn replace(&mut self, id: usize, place: usize, rule: Rule, line: u32) -> Result<(), ErrorKind> {
        self.delete(id, place)?;
        self.insert(id, place, rule, line)
    }

    pub fn delete(&mut self, id: usize, place: usize) -> Result<(), ErrorKind> {
        let there = self.len(id);
        let Some(old) = self.chain(id).and_then(|c| c.remove(place)) else {
            return Err(ErrorKind::NoSuchRule(there));
        };
        self.removed(&old.work);
        Ok(())
    }

    fn position(&mut self, id: usize, rule: Rule) -> Result<usize, ErrorKind> {
        let wanted = self.entry(rule, 0).work;
        self.chain(id).and_then(|c| c.position(&wanted)).ok_or(ErrorKind::RuleNotFound)
    }

    /// Deletes the first rule that is the same but for its counters.
    pub fn delete_rule(&mut self, id: usize, rule: Rule) -> Result<(), ErrorKind> {
        let place = self.position(id, rule)?;
        self.delete(id, place)
    }

    /// Whether there is a rule that is the same but for its counters.
    pub fn check(&mut self, id: usize, rule: Rule) -> Result<(), ErrorKind> {
        self.position(id, rule).map(|_| ())
    }
}
