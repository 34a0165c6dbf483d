//! The network of a virtual machine in a program of one's own: the worker serves QEMU's vhost-user at a socket, in the program's event loop.
//!
//! ```text
//! cargo run --release --example vhost_user -- /tmp/net.sock
//! qemu-system-x86_64 -object memory-backend-memfd,id=m,size=512M,share=on -machine q35,memory-backend=m -m 512 \
//!     -chardev socket,id=c,path=/tmp/net.sock -netdev vhost-user,id=n,chardev=c -device virtio-net-pci,netdev=n ...
//! ```

use event_manager::{EventManager, SubscriberOps};
use hibernet::link::vhost_user::VhostUserLink;
use hibernet::worker::{Worker, WorkerSetup};
use hibernet_netstack::Config;
use slog::Drain;
use std::error::Error;
use std::os::unix::net::UnixListener;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: vhost_user SOCKET [MTU]")?;
    let mtu = std::env::args().nth(2).map_or(Ok(1500), |m| m.parse())?;
    let listener = UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    let drain = slog_term::FullFormat::new(slog_term::PlainSyncDecorator::new(std::io::stderr())).build();
    let log = slog::Logger::root(drain.ignore_res(), slog::o!());
    let link = VhostUserLink::listening(listener.into(), false, mtu, None)?;
    let worker = Worker::new(WorkerSetup::new(Config::default(), vec![Box::new(link)], log))?;
    let mut events = EventManager::new()?;
    let network = events.add_subscriber(worker);
    println!("{path} is ready");
    loop {
        events.run()?;
        if let Some(why) = events.subscriber_mut(network)?.finished() {
            return Err(format!("the network has ended: {why:?}").into());
        }
    }
}
