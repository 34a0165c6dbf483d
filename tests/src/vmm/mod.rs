//! What stands on the other side of a link to a virtual machine: its monitor, and the driver in its guest.

mod driver;
mod front;
mod late;

pub use driver::{DriverQueue, Layout};
pub use front::{FrontEnd, LOG_PAGE, Options, code, feature};
pub use late::LateBody;
