//! What each protocol makes of its packets, one connection at a time, against what Linux 6.18 was seen to do.

mod icmp;
mod kit;
mod properties;
mod tcp_cases;
mod tcp_handshakes;
mod tcp_table;
mod tcp_windows;
mod udp_and_others;
