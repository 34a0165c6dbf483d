//! The `hibernet` command, run as it is.

mod attach;
mod confinement;
mod control;
mod images;
mod kit;
mod lifecycle;
mod mistakes;
mod resolver;
mod rules;
mod run;
mod terminal;
mod user;
