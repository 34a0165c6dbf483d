//! Rules: what each match and target means, what is refused, and how chains are walked.

mod gvisor;
mod kit;
mod log;
mod matches;
mod model;
mod refused;
mod targets;
mod walk;
