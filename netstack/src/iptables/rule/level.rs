//! Since which level of images there is what a rule is made of.

use super::{Match, Rule, Ruleset, Target};

impl Ruleset {
    /// All rules.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.tables.iter().flat_map(|t| &t.chains).flat_map(|c| &c.rules)
    }
}

impl Rule {
    /// A match or target that readers of images of this level do not know. Whoever adds one to the language says so here.
    pub(crate) fn newer_than(&self, level: u16) -> Option<&'static str> {
        let of_match = |m: &Match| match m {
            Match::Set(_) => (2, "-m set"),
            Match::Recent(_) => (2, "-m recent"),
            Match::Connbytes(_) => (2, "-m connbytes"),
            Match::Connlimit(_) => (2, "-m connlimit"),
            Match::Hashlimit(_) => (2, "-m hashlimit"),
            _ => (1, ""),
        };
        let target = match &self.target {
            Target::Set(_) => (2, "-j SET"),
            _ => (1, ""),
        };
        let all = self.matches.iter().map(of_match).chain([target]);
        all.filter(|(since, _)| *since > level).map(|(_, name)| name).next()
    }
}
