use super::*;

fn rule() -> HashlimitMatch {
    HashlimitMatch {
        above: false,
        bytes: false,
        avg: SCALE,
        burst: 3,
        mode: mode::SRC_IP,
        name: "t".into(),
        src_prefix: 32,
        dst_prefix: 32,
        size: 0,
        max: 0,
        expire: 10_000,
        gc_interval: 1000,
        interval: None,
    }
}

fn at(ms: u64) -> Time {
    Time::from_millis(ms)
}

fn from(n: u8) -> Bucket {
    Bucket { src: prefix([10, 0, 0, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 32), ..Bucket::default() }
}

fn table(rule: &HashlimitMatch) -> Arc<HashTable> {
    HashTables::new(rng::Key(1, 2)).of(rule, false).unwrap()
}

fn ask(t: &HashTable, n: u8, len: u32, ms: u64) -> bool {
    let r = &t.rule;
    match t.ask(r.bytes, r.above, &from(n), len, at(ms)) {
        Answer::Broken => panic!("full"),
        answer => answer == Answer::Yes,
    }
}

#[test]
fn each_source_has_its_burst_and_then_the_rate() {
    let t = table(&rule());
    for n in [1, 2] {
        assert_eq!([0, 0, 0, 0].map(|ms| ask(&t, n, 100, ms)), [true, true, true, false], "source {n}");
    }
    assert_eq!([900, 1004, 1008, 2012].map(|ms| ask(&t, 1, 100, ms)), [false, true, false, true]);
    assert!(ask(&t, 3, 100, 2012), "another source is none of its business");
}

#[test]
fn what_the_collector_took_begins_with_a_full_bucket() {
    let t = table(&HashlimitMatch { avg: 3600 * SCALE, expire: 1500, ..rule() });
    assert_eq!([0, 0, 0, 0].map(|ms| ask(&t, 1, 100, ms)), [true, true, true, false]);
    assert!(!ask(&t, 1, 100, 1490), "renewed");
    assert!(!ask(&t, 1, 100, 2995), "over at 2990, but the collector comes at 3000 only, and it is renewed");
    assert!(ask(&t, 1, 100, 6000), "over at 4495, collected at 5000");
}

#[test]
fn a_full_table_takes_nobody_before_somebody_is_over() {
    let t = table(&HashlimitMatch { size: 2, max: 2, expire: 1000, ..rule() });
    assert!(ask(&t, 1, 100, 0) && ask(&t, 2, 100, 600));
    assert_eq!(t.ask(false, false, &from(3), 100, at(700)), Answer::Broken);
    assert!(ask(&t, 2, 100, 1300));
    assert!(ask(&t, 3, 100, 1300), "the first one is over");
    assert_eq!(t.ask(false, false, &from(1), 100, at(1400)), Answer::Broken);
}

#[test]
fn bytes_cost_by_chunks_and_a_burst_fills_again() {
    // 16 kB/s: 1,024 chunks a second.
    let avg = u64::from(u32::MAX) / 1025;
    let t = table(&HashlimitMatch { bytes: true, avg, burst: 1, ..rule() });
    // 63 chunks of a thousand bytes.
    let fit = |ms| (0..100).take_while(|_| ask(&t, 1, 1000, ms)).count();
    assert_eq!(fit(0), 32, "a second's, twice");
    assert_eq!(fit(1000), 16);
    assert_eq!(fit(1500), 8);
}

#[test]
fn a_rate_is_above_for_the_interval_after_one_in_which_it_was() {
    let t = table(&HashlimitMatch { burst: 2, interval: Some(1), ..rule() });
    assert_eq!([0, 1, 2, 3].map(|ms| ask(&t, 1, 100, ms)), [true, true, true, false], "a rate of one, and a burst of two");
    assert!(!ask(&t, 1, 100, 1004), "it was above");
    assert!(ask(&t, 1, 100, 2012), "one in a second is not");
}

#[test]
fn rules_of_a_family_share_a_table_by_name_until_the_last_one_goes() {
    let tables = HashTables::new(rng::Key(0, 0));
    let of = |rule, v6| tables.of(&rule, v6).unwrap();
    let (a, b) = (of(rule(), false), of(HashlimitMatch { burst: 1, ..rule() }, false));
    assert!(Arc::ptr_eq(&a, &b));
    assert!(!Arc::ptr_eq(&a, &of(rule(), true)));
    assert!(tables.of(&HashlimitMatch { interval: Some(1), ..rule() }, false).is_none(), "it takes no rates");
    assert!(ask(&a, 1, 100, 0));
    drop((a, b));
    assert!(tables.save().is_empty());
}

#[test]
fn tables_go_on_as_they_were_saved_and_wrong_ones_are_refused() {
    let t = table(&rule());
    let tables = HashTables::new(rng::Key(1, 2));
    tables.add(HashTable { v6: false, rule: t.rule.clone(), entries: Mutex::new(Entries::new(rng::Key(0, 0))) });
    let first = tables.of(&rule(), false).unwrap();
    (0..20).for_each(|n| assert!(ask(&first, n, 100, u64::from(n))));
    assert!(ask(&first, 1, 100, 30) && ask(&first, 1, 100, 30) && !ask(&first, 1, 100, 30));
    let saved = tables.save();
    let others = HashTables::new(rng::Key(7, 8));
    let held = others.load(saved.clone()).unwrap();
    assert_eq!(others.save(), saved);
    let again = others.of(&rule(), false).unwrap();
    assert!(Arc::ptr_eq(&held[0], &again) && !ask(&again, 1, 100, 40) && ask(&again, 2, 100, 40));
    let refused = |change: &dyn Fn(&mut SavedTable)| {
        let mut state = saved.clone();
        change(&mut state.tables[0]);
        HashTables::new(rng::Key(0, 0)).load(state).is_err()
    };
    assert!(refused(&|t| t.entries.swap(0, 1)) && refused(&|t| t.entries[3].0.sport = 1));
    assert!(refused(&|t| t.entries[3].0.src[5] = 1) && refused(&|t| t.rule.expire = 0) && refused(&|t| t.rule.src_prefix = 33));
    assert!(refused(&|t| t.rule.name = "a/b".into()) && refused(&|t| (t.rule.size, t.rule.max) = (2, 2)));
    assert!(!refused(&|_| {}));
}
