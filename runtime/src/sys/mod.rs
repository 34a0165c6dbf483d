//! System calls behind safe functions. The only place of `unsafe` in the project.

pub mod mmap;
