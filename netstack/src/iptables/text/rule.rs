//! Rules from their options.

use super::error::{ErrorKind, Fault};
use super::ext::Scope;
use super::lexer::Word;
use super::options::{Jump, Line, Spec};
use super::value;
use crate::iptables::{Family, IfaceName, Inv, Net, Rule, TableName, Target};

/// Longest interface name, in bytes.
const IFACE_MAX: usize = 15;

/// The rules that a line describes: more than one if addresses are listed, sources in the outer loop.
pub(super) fn build(line: &Line<'_>, family: Family, table: TableName, chain: &str) -> Result<Vec<Rule>, Fault> {
    let spec = &line.rule;
    forbidden_interface(spec, chain)?;
    let scope = Scope { family, proto: spec.proto };
    let mut rule = Rule {
        counters: spec.counters.unwrap_or_default(),
        input: spec.input.as_ref().map(|(_, name)| iface(name)).transpose()?.flatten(),
        output: spec.output.as_ref().map(|(_, name)| iface(name)).transpose()?.flatten(),
        proto: spec.proto.filter(|p| p.value != 0),
        fragment: spec.fragment,
        ..Rule::default()
    };
    for (extension, given) in &spec.matches {
        rule.matches.push((extension.build)(&scope, given)?);
    }
    rule.target = match &spec.target {
        None => Target::None,
        Some(Jump::Verdict(Target::Drop)) if table == TableName::Nat => {
            return Err(line.word.fault(ErrorKind::Combination("the nat table is not for filtering: no DROP there".to_owned())));
        }
        Some(Jump::Verdict(verdict)) => verdict.clone(),
        Some(Jump::Chain { name, .. }) if table.built_in().contains(&name.as_str()) => {
            return Err(name.fault(ErrorKind::BuiltIn));
        }
        Some(Jump::Chain { name, goto: false }) => Target::Jump(name.as_str().to_owned()),
        Some(Jump::Chain { name, goto: true }) => Target::Goto(name.as_str().to_owned()),
        Some(Jump::Extension(extension, given)) => (extension.build)(&scope, given)?,
    };
    let sources = nets(family, spec.src.as_ref())?;
    let destinations = nets(family, spec.dst.as_ref())?;
    if (sources.len() > 1 || destinations.len() > 1)
        && let Some(inverted) = [&spec.src, &spec.dst].into_iter().flatten().find(|n| n.not)
    {
        let why = "`!` cannot stand before an address where addresses are listed";
        return Err(inverted.value.fault(ErrorKind::Combination(why.to_owned())));
    }
    let mut rules = Vec::with_capacity(sources.len().saturating_mul(destinations.len()).min(super::MAX_RULES));
    for src in &sources {
        for dst in &destinations {
            if rules.len() >= super::MAX_RULES {
                return Err(line.word.fault(ErrorKind::TooMany(super::MAX_RULES)));
            }
            rules.push(Rule { src: *src, dst: *dst, ..rule.clone() });
        }
    }
    Ok(rules)
}

/// `-i` where nothing comes in, or `-o` where nothing goes out.
fn forbidden_interface(spec: &Spec<'_>, chain: &str) -> Result<(), Fault> {
    let (option, name) = match chain {
        "PREROUTING" | "INPUT" => (&spec.output, "-o"),
        "POSTROUTING" | "OUTPUT" => (&spec.input, "-i"),
        _ => return Ok(()),
    };
    match option {
        Some((word, _)) => Err(word.fault(ErrorKind::Combination(format!("{name} has no meaning in {chain}")))),
        None => Ok(()),
    }
}

/// An interface; `None` for `+`, which is any.
fn iface(given: &Inv<Word<'_>>) -> Result<Option<Inv<IfaceName>>, Fault> {
    let text = given.value.as_str();
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == '"';
    if text.is_empty() || text.len() > IFACE_MAX || text == "!" || text.contains(odd) {
        return Err(given.value.bad(format!(
            "the name of an interface of at most {IFACE_MAX} bytes, with a final + for all that begin so; `!` stands before the option"
        )));
    }
    let (name, prefix) = text.strip_suffix('+').map_or((text, false), |name| (name, true));
    let any = name.is_empty() && !given.not;
    Ok((!any).then(|| Inv { not: given.not, value: IfaceName { name: name.to_owned(), prefix } }))
}

/// Addresses of an option, at least one; all addresses are `None` unless inverted.
fn nets(family: Family, given: Option<&Inv<Word<'_>>>) -> Result<Vec<Option<Inv<Net>>>, Fault> {
    let Some(given) = given else { return Ok(vec![None]) };
    let one = |text: &str| {
        let net = value::net(family, &given.value, text.trim_start())?;
        let any = value::prefix_len(net.mask) == Some(0) && !given.not;
        Ok((!any).then_some(Inv { not: given.not, value: net }))
    };
    given.value.as_str().split(',').map(one).collect()
}
