//! Images for readers of older levels: what those can read is written so, and what they cannot is refused by name.

use hibernet_netstack::admin::Recheck;
use hibernet_netstack::config::{Behind, GuestNet};
use hibernet_netstack::image::LEVEL;
use hibernet_netstack::ipset::Sets;
use hibernet_netstack::iptables::{Family, text};
use hibernet_netstack::state::{Randomness, StackState};
use hibernet_netstack::{Stack, Time};
use hibernet_snapshot::{Image, Known, WriteError};
use hibernet_tests::{World, image, lively};

/// A state at a level.
fn written(level: u16, stack: &Stack, now: Time) -> Result<Vec<u8>, WriteError> {
    image::write_at(level, now, &stack.save(), &stack.conntrack().save())
}

/// What a reader knew who was there when images were of a level.
fn known_at(level: u16) -> Vec<Known> {
    image::known().iter().filter_map(|k| k.at(level)).collect()
}

#[test]
fn the_level_is_that_of_the_newest_section() {
    let newest = image::known().iter().filter_map(|k| k.level_of(k.newest())).max();
    assert_eq!(newest, Some(LEVEL));
}

#[test]
fn a_reader_of_an_older_level_reads_what_is_written_for_it() {
    let w = lively();
    for level in 1..=LEVEL {
        let bytes = written(level, &w.stack, w.now()).expect("nothing of it is new");
        let image = Image::parse(&bytes, &known_at(level)).unwrap_or_else(|e| panic!("level {level}: {e}"));
        image.check().expect("right checksums");
        assert_eq!(image.inventory().level(&image::known()), Some(level));
        let state = StackState::from_image(&image).expect("a state");
        assert_eq!(state, w.stack.save(), "level {level}");
        let again = image::restore(&bytes, Randomness::Replay([1; 16], 0), &[]).expect("it is loaded");
        assert_eq!(again.flow_counts(), w.stack.flow_counts());
        // Without `at_level` it would not be for that reader.
        let newest = written(LEVEL, &w.stack, w.now()).expect("the newest level says everything");
        assert_eq!(Image::parse(&newest, &known_at(level)).is_ok(), level == LEVEL);
    }
}

/// What level 1 has no way to say, and how that is called.
#[test]
fn what_an_older_level_cannot_say_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut World), words: &[&str]| {
        let mut w = World::new(hibernet_netstack::Config::default());
        written(1, &w.stack, w.now()).expect("nothing of it is new");
        change(&mut w);
        let e = written(1, &w.stack, w.now()).expect_err(words[0]).to_string();
        for word in words {
            assert!(e.contains(word), "{word}: {e}");
        }
        written(2, &w.stack, w.now()).expect("the newest level says everything");
    };
    let rules = |w: &mut World, sets: &str, rule: &str| {
        let (now, sets) = (w.now(), Sets::default().restore(sets, Time::ZERO).expect("sets"));
        let rules = text::parse(Family::V4, &format!("*filter\n{rule}\nCOMMIT\n")).expect("rules");
        w.stack.set_rules_on(now, rules, Some(&sets), Recheck::Keep, &mut w.edge).expect("loaded");
    };
    for rule in [
        "-A FORWARD -m recent --name a --set",
        "-A FORWARD -m connbytes --connbytes 1: --connbytes-dir both --connbytes-mode packets",
        "-A FORWARD -p tcp -m connlimit --connlimit-above 3",
        "-A FORWARD -m hashlimit --hashlimit-upto 5/s --hashlimit-name a",
    ] {
        let name = rule.split(' ').nth(if rule.contains("-p tcp") { 5 } else { 3 }).expect("a word");
        refused(&|w| rules(w, "", rule), &["section 3", "level 1", &format!("-m {name}")]);
    }
    refused(&|w| rules(w, "create a hash:ip\n", "-A FORWARD -m set --match-set a src"), &["section 3", "-m set"]);
    refused(&|w| rules(w, "create a hash:ip\n", "-A FORWARD -j SET --add-set a src"), &["section 3", "-j SET"]);
    refused(&|w| rules(w, "create a hash:ip\n", "-A FORWARD -j DROP"), &["section 9", "no such section"]);
    let second = |w: &mut World, behind: Behind, name: &str| {
        w.stack.add_named_link(World::plain_link(), behind, name.into());
    };
    refused(&|w| second(w, Behind::Guest(GuestNet::default()), "db"), &["section 2", "joined"]);
    refused(&|w| second(w, Behind::Nobody, ""), &["section 2", "left"]);
    refused(&|w| second(w, Behind::Configured, "db"), &["section 2", "names"]);
}
