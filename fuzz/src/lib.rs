//! Fuzzing of the stack: bytes become a story of frames from the guest, deeds of peers, and time. Rules and images are read as they are. A virtual machine's
//! monitor and driver break every rule.

pub mod conntrack_image;
pub mod image;
mod play;
pub mod rules;
mod script;
pub mod seeds;
pub mod vhost_user;

pub use play::play;
