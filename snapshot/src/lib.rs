//! Container of hibernet images: a header that can be read without any codec, and a table of sections.
//!
//! This crate knows no protocol, no descriptor and no clock.
#![forbid(unsafe_code)]
