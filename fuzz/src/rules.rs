//! Texts of rules.

use hibernet_netstack::iptables::text::{PrintOptions, RestoreOptions, diff, print, restore};
use hibernet_netstack::iptables::{Family, Program, Ruleset};
use std::path::Path;

/// Reads a text, whose first byte says how, as it is and as the rest of a table. What can be read must survive printing.
pub fn read(bytes: &[u8]) {
    let Some((&how, bytes)) = bytes.split_first() else { return };
    let family = if how & 1 == 0 { Family::V4 } else { Family::V6 };
    let options = RestoreOptions { counters: how & 2 != 0, noflush: how & 4 != 0 };
    let text = String::from_utf8_lossy(bytes);
    let text = if how & 8 == 0 { text.into_owned() } else { format!("*filter\n:X - [0:0]\n:Y - [0:0]\n{text}\nCOMMIT\n") };
    match restore(&Ruleset::new(family), &text, options) {
        Err(e) => {
            assert!(e.line > 0 && e.column > 0 && e.line as usize <= text.lines().count() + 1, "{e}");
            assert!(matches!(e.exit_code(), 1 | 2));
        }
        Ok(rules) => {
            let printed = print(&rules, PrintOptions { counters: true, date: None });
            let again = restore(&Ruleset::new(family), &printed, RestoreOptions { counters: true, noflush: false });
            assert_eq!(again.as_ref(), Ok(&rules), "{printed}");
            assert!(diff(&rules, &rules).is_equal());
            let _ = Program::compile(&rules);
        }
    }
}

/// If HIBERNET_FUZZ_SEEDS names a directory, writes the golden texts and rules there and ends the process.
pub fn write_seeds_if_asked() {
    let Some(dir) = std::env::var_os("HIBERNET_FUZZ_SEEDS") else { return };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/rules");
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for entry in std::fs::read_dir(&golden).expect("golden rules") {
        let path = entry.expect("entry").path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        let text = std::fs::read_to_string(&path).expect("golden text");
        let v6 = u8::from(name.contains('6'));
        if name.ends_with(".rules") || name.ends_with(".saved") {
            seeds.push([&[v6 | 2], text.as_bytes()].concat());
        } else if name.starts_with("single") {
            for case in text.lines().filter(|l| !l.starts_with('#')) {
                let words: Vec<&str> = case.split('|').collect();
                seeds.push([&[v6 | 8], format!("-A {} {}", words[1], words[2]).as_bytes()].concat());
            }
        }
    }
    for (n, seed) in seeds.iter().enumerate() {
        std::fs::write(Path::new(&dir).join(format!("seed-{n:03}")), seed).expect("seed is written");
    }
    std::process::exit(0);
}
