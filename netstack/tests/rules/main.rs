//! Rules: what each match and target means, what is refused, and how chains are walked.

mod kit;
mod matches;
mod refused;
mod walk;
