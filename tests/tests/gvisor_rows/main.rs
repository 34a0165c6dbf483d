//! Defects of gVisor's tracker that are not to be inherited: each row of `gvisor.md` section 3 has a test that fails on what the row
//! describes. Here are those that show in what a stack does; the others are beside the part that they are about:
//!
//! | Row | Test |
//! |---|---|
//! | 1 | `tests/tests/gvisor_rows/life.rs`: `row_01_times_come_back_as_they_were` |
//! | 2 | `tests/tests/gvisor_rows/life.rs`: `row_02_only_stack_time_ages`; `netstack/src/conntrack/tests/gvisor_rows.rs`: `row_02_connections_age_by_stack_time_alone` |
//! | 3 | `netstack/src/conntrack/tests/gvisor_rows.rs`: `row_03_a_live_connection_behind_an_expired_one_is_found` |
//! | 4 | `netstack/src/conntrack/tests/gvisor_rows.rs`: `row_04_one_turn_reaps_everything_that_timed_out` |
//! | 5 | `tests/tests/gvisor_rows/tracking.rs`: `row_05_a_tuple_that_timed_out_begins_anew_and_is_translated`; `netstack/src/conntrack/tests/gvisor_rows.rs`: `row_05_an_expired_connection_never_blocks_a_new_one` |
//! | 6 | `netstack/src/conntrack/tests/gvisor_rows.rs`: `row_06_a_translated_connection_leaves_the_right_buckets` |
//! | 7 | `tests/tests/gvisor_rows/threads.rs`: `row_07_look_ups_reaping_and_quiescing_beside_each_other_come_to_an_end`; `netstack/tests/conntrack_model.rs`: `nothing_is_reaped_while_quiesced`, `reaping_beside_look_ups` |
//! | 8, 9, 10 | `tests/tests/gvisor_rows/life.rs`: `row_08_09_10_quiesce_and_restart_while_the_stack_runs`; `netstack/src/conntrack/tests/gvisor_rows.rs`: `rows_08_09_10_quiescing_is_repeatable_and_loses_nothing` |
//! | 11 | `tests/tests/gvisor_rows/life.rs`: `row_11_states_come_back_and_go_on` |
//! | 12 | `tests/tests/gvisor_rows/life.rs`: `row_12_a_stack_that_never_tracked_has_no_reaper_after_a_restart`; `netstack/src/conntrack/tests/gvisor_rows.rs`: `row_12_restarting_does_not_start_a_reaper_that_was_never_needed` |
//! | 13 | `netstack/src/conntrack/tests/gvisor_rows.rs`: `row_13_the_second_of_two_first_packets_joins_the_first`; `tests/tests/gvisor_rows/threads.rs`: `row_13_threads_that_race_for_a_connection_share_it`; `netstack/tests/conntrack_model.rs`: `first_packets_of_one_connection_share_it` |
//! | 14 | `tests/tests/gvisor_rows/nat.rs`: `row_14_two_clients_behind_one_address_get_their_own_answers`; `netstack/src/conntrack/tests/gvisor_rows.rs`: `rows_14_30_both_tuples_are_unique`; `tests/tests/gvisor_groups/ports.rs`: `clients_with_one_port_get_ports_of_its_class` |
//! | 15 | `tests/tests/gvisor_rows/nat.rs`: `row_15_source_and_destination_of_one_packet`; `netstack/src/nat/tests/targets.rs`: `each_end_once` |
//! | 16 | `tests/tests/gvisor_rows/tracking.rs`: `row_16_a_forwarded_connection_idles_and_is_still_translated`; `netstack/tests/protocols/tcp_handshakes.rs`: `row_16_a_forwarded_connection_lives_on_when_idle` |
//! | 17 | `tests/tests/gvisor_rows/nat.rs`: `row_17_checksums_of_what_the_link_vouched_for`, `row_17_zero_checksums_of_udp`, `row_17_offloaded_segments_of_translated_connections`; `netstack/src/nat/tests/bytes.rs`: `rewritten_is_rebuilt` |
//! | 18 | `tests/tests/gvisor_rows/nat.rs`: `row_18_datagrams_are_translated_back`; `tests/tests/gvisor_groups/errors.rs`: `errors_are_mapped_with_what_they_quote` |
//! | 19 | `tests/tests/gvisor_rows/tracking.rs`: `row_19_a_syn_behind_extension_headers_is_matched_and_translated`; `netstack/tests/protocols/udp_and_others.rs`: `row_19_extension_headers_hide_nothing` |
//! | 20 | `tests/tests/gvisor_rows/tracking.rs`: `row_20_damaged_segments_change_nothing`; `tests/tests/gvisor_groups/invalid.rs`: `lengths_and_offsets_that_cannot_be` |
//! | 21 | `netstack/tests/protocols/tcp_windows.rs`: `windows_are_scaled_if_both_sides_say_so`, `window_scaling_decides_what_closes` |
//! | 22 | `tests/tests/gvisor_rows/tracking.rs`: `row_22_reset_is_reset_and_a_syn_begins_anew`; `netstack/tests/protocols/tcp_handshakes.rs`: `row_22_what_was_reset_stays_so_and_is_gone_soon` |
//! | 23, 24 | `netstack/src/conntrack/tests/gvisor_rows.rs`: `rows_23_24_buckets_are_keyed_and_in_range` |
//! | 25 | `tests/tests/floods.rs`: `the_guest_floods`, `ten_times_the_real_caps`; `netstack/src/conntrack/tests/floods.rs`: `syn_flood` |
//! | 26 | `netstack/src/conntrack/tests/gvisor_rows.rs`: `row_26_small_tables_are_reaped` |
//! | 27 | `netstack/src/conntrack/tests/gvisor_rows.rs`: `row_27_the_pace_follows_what_was_found` |
//! | 28 | `tests/tests/gvisor_rows/tracking.rs`: `row_28_original_destination_of_a_fresh_stack`; `netstack/src/conntrack/tests/gvisor_rows.rs`: `row_28_original_destinations` |
//! | 29 | `netstack/tests/rules/gvisor.rs`: `rejects_go_on_while_tables_are_replaced` |
//! | 30 | `tests/tests/gvisor_rows/nat.rs`: `row_30_tables_are_replaced_between_the_packets_of_a_flow` |
//! | 31 | `tests/tests/gvisor_rows/tracking.rs`: `row_31_dropped_after_translation_leaves_nothing` |
//! | 32 | `tests/tests/gvisor_rows/tracking.rs`: `row_32_keep_alives_keep_untranslated_connections`; `netstack/src/conntrack/tests/gvisor_rows.rs`: `row_32_untranslated_connections_are_renewed` |
//!
//! What of rows 1, 8-12 and 23 is about an image (records of connections and rules, a key drawn anew, two restores that differ) is
//! tested where images are.

mod life;
mod nat;
mod threads;
mod tracking;

/// Each test that a text names (`path`: `function`, `function`; …) exists.
fn check_claims(text: &str) -> usize {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let (mut source, mut n) = (String::new(), 0);
    for name in text.split('`').skip(1).step_by(2) {
        if name.ends_with(".rs") {
            source = std::fs::read_to_string(format!("{root}/{name}")).unwrap_or_else(|e| panic!("{name}: {e}"));
        } else if !name.contains('.') {
            n += 1;
            assert!(source.contains(&format!("fn {name}(")), "no test {name}");
        }
    }
    n
}

#[test]
fn every_row_has_its_test() {
    let table: Vec<&str> = include_str!("main.rs").lines().filter(|l| l.starts_with("//! | ")).skip(1).collect();
    let rows = table.iter().flat_map(|l| l[6..].split(" | ").next().unwrap().split(", "));
    assert_eq!(rows.map(|r| r.parse().unwrap()).collect::<Vec<u32>>(), (1..=32).collect::<Vec<_>>());
    for line in table {
        assert!(check_claims(line) > 0, "{line}");
    }
}

#[test]
fn every_ancestor_has_its_test() {
    let text = include_str!("../../../docs/ancestors.md");
    let rows: Vec<&str> = text.lines().filter(|l| ["| A", "| B", "| D"].iter().any(|start| l.starts_with(start))).collect();
    let names: Vec<&str> = rows.iter().map(|l| l[2..].split(" |").next().unwrap()).collect();
    let want = (1..=14).map(|n| format!("A{n}")).chain((1..=6).map(|n| format!("B{n}")));
    // D4 is not there, which is said.
    let want: Vec<String> = want.chain((1..=10).filter(|n| *n != 4).map(|n| format!("D{n}"))).collect();
    assert_eq!(names, want);
    for line in rows {
        assert!(check_claims(line) > 0, "{line}");
    }
}
