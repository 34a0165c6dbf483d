//! The network of a virtual machine in its monitor's own process: guest memory and virtqueues go straight to the worker, in the monitor's event loop.
//!
//! Monitor and guest are played here: the guest asks with ARP who the gateway is.
//!
//! ```text
//! cargo run --release --example vrings
//! ```

use event_manager::{EventManager, SubscriberOps};
use hibernet::link::vhost_user::{FEATURES, VhostUserLink, Vring, VringPair, Vrings};
use hibernet::worker::{Worker, WorkerSetup};
use hibernet_netstack::Config;
use rustix::event::{EventfdFlags, eventfd};
use std::error::Error;
use std::os::fd::OwnedFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Entries of a queue.
const SIZE: u16 = 64;
/// Bytes of a buffer, and of the virtio-net header at its beginning.
const BUFFER: u64 = 2048;
const HEADER: u64 = 12;

/// As a monitor learns it from its guest's driver: a queue at this address, its descriptors first.
fn vring(base: u64, kick: &OwnedFd, call: &OwnedFd) -> Result<Vring, Box<dyn Error>> {
    let (kick, call) = (kick.try_clone()?, call.try_clone()?);
    Ok(Vring { size: SIZE, desc: base, avail: base + 0x400, used: base + 0x800, kick, call })
}

/// As a driver does: makes buffers of this length available, to be written to if `flags` say so.
fn offer(memory: &GuestMemoryMmap, base: u64, buffers: u64, (count, len): (u16, u32), flags: u16) -> Result<(), Box<dyn Error>> {
    for n in 0..count {
        let at = buffers + u64::from(n) * BUFFER;
        let descriptor = u128::from(at) | u128::from(len) << 64 | u128::from(flags) << 96;
        memory.write_slice(&descriptor.to_le_bytes(), GuestAddress(base + 16 * u64::from(n)))?;
        memory.write_obj(n, GuestAddress(base + 0x404 + 2 * u64::from(n)))?;
    }
    Ok(memory.write_obj(count, GuestAddress(base + 0x402))?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
    let (receive, transmit, inbox, outbox) = (0x1000, 0x2000, 0x1_0000, 0x8_0000);
    let mut request = vec![0xff; 6];
    request.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 2, 15]);
    request.extend([0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    memory.write_slice(&request, GuestAddress(outbox + HEADER))?;
    offer(&memory, receive, inbox, (SIZE, BUFFER as u32), 2)?;
    offer(&memory, transmit, outbox, (1, HEADER as u32 + request.len() as u32), 0)?;

    let event = || eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
    let (kicked, sent, received, reclaimed) = (event()?, event()?, event()?, event()?);
    rustix::io::write(&sent, &1_u64.to_ne_bytes())?;
    let pair = VringPair { receive: vring(receive, &kicked, &received)?, transmit: vring(transmit, &sent, &reclaimed)? };
    let vrings = Vrings { memory: memory.clone(), features: FEATURES, pairs: vec![pair] };
    let link = VhostUserLink::in_process(vrings, 1500, None)?;
    let log = slog::Logger::root(slog::Discard, slog::o!());
    let mut events = EventManager::new()?;
    let network = events.add_subscriber(Worker::new(WorkerSetup::new(Config::default(), vec![Box::new(link)], log))?);
    loop {
        events.run()?;
        if let Some(why) = events.subscriber_mut(network)?.finished() {
            return Err(format!("the network has ended: {why:?}").into());
        }
        for n in 0..memory.read_obj::<u16>(GuestAddress(receive + 0x802))? {
            let buffer: u32 = memory.read_obj(GuestAddress(receive + 0x804 + 8 * u64::from(n)))?;
            let mut frame = [0; 42];
            memory.read_slice(&mut frame, GuestAddress(inbox + u64::from(buffer) * BUFFER + HEADER))?;
            // An answer of ARP.
            if let ([8, 6], [0, 2]) = (&frame[12..14], &frame[20..22]) {
                println!("10.0.2.2 is at {:02x?}", &frame[22..28]);
                return Ok(());
            }
        }
    }
}
