//! Texts of rules, made whole.

/// Tables and their built-in chains.
const TABLES: [(&str, &[&str]); 5] = [
    ("raw", &["PREROUTING", "OUTPUT"]),
    ("mangle", &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
    ("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
    ("filter", &["INPUT", "FORWARD", "OUTPUT"]),
    ("security", &["INPUT", "FORWARD", "OUTPUT"]),
];

/// Lines of `ipset` that stand before the first table.
pub fn sets(rules: &str) -> String {
    rules.lines().map(str::trim).take_while(|l| !l.starts_with('*')).filter(|l| !l.is_empty()).map(|l| format!("{l}\n")).collect()
}

/// The same rules, without sets, with every table and every built-in chain named, so that nothing is left of what was loaded before: a
/// restore keeps tables and policies that its text does not mention.
pub fn whole(rules: &str) -> String {
    let mut out = String::new();
    let declared = |table: &str, chain: &str| {
        let mut here = false;
        rules.lines().any(|l| {
            if let Some(t) = l.strip_prefix('*') {
                here = t.trim() == table;
            }
            here && l.strip_prefix(':').is_some_and(|l| l.split_whitespace().next() == Some(chain))
        })
    };
    let missing = |table: &str, out: &mut String| {
        let (_, chains) = TABLES.iter().find(|(t, _)| *t == table).unwrap_or_else(|| panic!("no such table: {table}"));
        for chain in chains.iter().filter(|c| !declared(table, c)) {
            *out += &format!(":{chain} ACCEPT [0:0]\n");
        }
    };
    let tables = rules.lines().map(str::trim).skip_while(|l| !l.starts_with('*'));
    for line in tables.filter(|l| !l.is_empty()) {
        out += line;
        // With -c a policy needs counters.
        if line.starts_with(':') && !line.ends_with(']') {
            out += " [0:0]";
        }
        out.push('\n');
        if let Some(table) = line.strip_prefix('*') {
            missing(table.trim(), &mut out);
        }
    }
    for (table, _) in TABLES {
        if !rules.lines().any(|l| l.trim().strip_prefix('*').is_some_and(|t| t.trim() == table)) {
            out += &format!("*{table}\n");
            missing(table, &mut out);
            out += "COMMIT\n";
        }
    }
    out
}
