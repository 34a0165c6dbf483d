//! Fuzzing of the stack: bytes become a story of frames from the guest, deeds of peers, and time. Rules and images are read as they are.

pub mod conntrack_image;
pub mod image;
mod play;
pub mod rules;
mod script;
pub mod seeds;

pub use play::play;
