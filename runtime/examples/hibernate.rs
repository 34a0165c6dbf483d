//! Hibernation in the hands of an embedder. This process plays a VMM with a guest (smoltcp) that talks TCP to a server on the host. The network is
//! served by another process, which is frozen into a file and ends; a third one goes on where it stood, and so does the connection.

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use hibernet::checkpoint::{Held, config_of, known};
use hibernet::link::socket::SocketLink;
use hibernet::worker::{Prepare, RestorePolicy, Worker, WorkerSetup};
use hibernet_netstack::Config;
use hibernet_snapshot::Image;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use smoltcp::iface::{Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as GuestTime;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use std::error::Error;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vmm_sys_util::epoll::EventSet;

type Done<T> = Result<T, Box<dyn Error>>;

/// What the embedder's loop serves: the network, and the embedder's own business, here to notice that it shall freeze.
enum Subscriber {
    Network(Box<Worker>),
    Vmm { fd: RawFd, asked: bool },
}

impl MutEventSubscriber for Subscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match self {
            Subscriber::Network(w) => w.process(events, ops),
            Subscriber::Vmm { asked, .. } => *asked = true,
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        match self {
            Subscriber::Network(w) => w.init(ops),
            Subscriber::Vmm { fd, .. } => ops.add(Events::new_raw(*fd, EventSet::IN)).expect("epoll takes a socket"),
        }
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// The process that serves the network: the guest's link is standard input, the VMM standard output. It goes on from an image if there is one, and
/// is frozen into it when the VMM says so.
fn network(image: &str) -> Done<()> {
    let link = SocketLink::messages(std::io::stdin().as_fd().try_clone_to_owned()?, 1500, None)?;
    let vmm = std::io::stdout().as_fd().try_clone_to_owned()?;
    let setup = |config| WorkerSetup::new(config, vec![Box::new(link)], slog::Logger::root(slog::Discard, slog::o!()));
    let worker = match std::fs::read(image) {
        Ok(bytes) => {
            let image = Image::parse(&bytes, &known())?;
            let held = Held::receive(&vmm, soon())?;
            // The token came with the sockets; a VMM keeps it with its memory image.
            let policy = RestorePolicy { expected: held.generation, ..RestorePolicy::default() };
            let (worker, report) = Worker::restore(setup(config_of(&image)?), &image, held, &policy, None)?;
            report.flows.iter().for_each(|f| eprintln!("{}: {}", f.flow, f.outcome));
            worker
        }
        Err(_) => {
            let mut config = Config::default();
            config.reach.map_host_loopback = config.v4.map(|c| c.gateway.into()).into_iter().collect();
            Worker::new(setup(config))?
        }
    };
    let mut events = EventManager::new()?;
    let network = events.add_subscriber(Subscriber::Network(Box::new(worker)));
    let business = events.add_subscriber(Subscriber::Vmm { fd: vmm.as_raw_fd(), asked: false });
    while !matches!(events.subscriber_mut(business)?, Subscriber::Vmm { asked: true, .. }) {
        events.run()?;
    }
    rustix::net::recv(&vmm, &mut [0; 16][..], rustix::net::RecvFlags::empty())?;
    let Subscriber::Network(mut worker) = events.remove_subscriber(network)? else { unreachable!() };
    let prepared = worker.prepare(&Prepare::default(), None)?;
    prepared.contents.write_to(&mut File::create(image)?, &mut |_, _| ControlFlow::Continue(()))?;
    eprintln!("frozen within {} us", prepared.report.times.total_ns() / 1000);
    // Until here `abort` would have let it go on. From here on the VMM holds the connections.
    let held = worker.commit(prepared.token).map_err(|(_, e)| e)?;
    Ok(held.send(&vmm, soon())?)
}

fn start(link: &OwnedFd, image: &std::path::Path) -> Done<(Child, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let child = Command::new(std::env::current_exe()?)
        .arg(image)
        .stdin(Stdio::from(link.try_clone()?))
        .stdout(Stdio::from(theirs))
        .spawn()?;
    Ok((child, ours))
}

fn main() -> Done<()> {
    if let Some(image) = std::env::args().nth(1) {
        return network(&image);
    }
    let server = TcpListener::bind("127.0.0.1:0")?;
    let port = server.local_addr()?.port();
    std::thread::spawn(move || server.accept().map(|(s, _)| std::io::copy(&mut &s, &mut &s)));
    let (nic, link) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    let image = std::env::temp_dir().join(format!("hibernate-{}.img", std::process::id()));
    let mut guest = Guest::new(nic);
    let (mut child, vmm) = start(&link, &image)?;
    guest.connect(port)?;
    guest.echo("before")?;

    rustix::net::send(&vmm, b"freeze", rustix::net::SendFlags::empty())?;
    let held = Held::receive(&vmm, soon())?;
    child.wait()?;
    println!("frozen: {} bytes of image, {} sockets held", std::fs::metadata(&image)?.len(), held.sockets.len());

    let (mut child, vmm) = start(&link, &image)?;
    held.send(&vmm, soon())?;
    drop(held);
    guest.echo("after")?;
    child.kill()?;
    child.wait()?;
    Ok(std::fs::remove_file(image)?)
}

/// The guest's network card: frames over a socket that keeps messages apart.
struct Nic(OwnedFd);

struct Frame<'a>(&'a OwnedFd, Vec<u8>);

impl RxToken for Frame<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.1)
    }
}

impl TxToken for Frame<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = vec![0; len];
        let r = f(&mut bytes);
        // A frame that does not go out is lost, as on any wire.
        let _ = rustix::net::send(self.0, &bytes, rustix::net::SendFlags::empty());
        r
    }
}

impl Device for Nic {
    type RxToken<'a> = Frame<'a>;
    type TxToken<'a> = Frame<'a>;

    fn receive(&mut self, _: GuestTime) -> Option<(Frame<'_>, Frame<'_>)> {
        let mut bytes = vec![0; 2048];
        let (_, n) = rustix::net::recv(&self.0, &mut bytes[..], rustix::net::RecvFlags::empty()).ok()?;
        bytes.truncate(n);
        Some((Frame(&self.0, bytes), Frame(&self.0, Vec::new())))
    }

    fn transmit(&mut self, _: GuestTime) -> Option<Frame<'_>> {
        Some(Frame(&self.0, Vec::new()))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut c = DeviceCapabilities::default();
        (c.medium, c.max_transmission_unit) = (Medium::Ethernet, 1514);
        c
    }
}

struct Guest {
    nic: Nic,
    iface: Interface,
    sockets: SocketSet<'static>,
    start: Instant,
}

impl Guest {
    fn new(nic: OwnedFd) -> Guest {
        let mut nic = Nic(nic);
        let mac = HardwareAddress::Ethernet(EthernetAddress([2, 0, 0, 0, 0, 0x15]));
        let mut iface = Interface::new(smoltcp::iface::Config::new(mac), &mut nic, GuestTime::ZERO);
        iface.update_ip_addrs(|a| a.push(IpCidr::new(Ipv4Addr::new(10, 0, 2, 15).into(), 24)).expect("room for an address"));
        Guest { nic, iface, sockets: SocketSet::new(Vec::new()), start: Instant::now() }
    }

    fn connect(&mut self, port: u16) -> Done<()> {
        let buffer = || tcp::SocketBuffer::new(vec![0; 4096]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.connect(self.iface.context(), (Ipv4Addr::new(10, 0, 2, 2), port), 40_000).map_err(|e| e.to_string())?;
        self.sockets.add(socket);
        Ok(())
    }

    /// Sends a word to the server and waits until it comes back.
    fn echo(&mut self, word: &str) -> Done<()> {
        let (mut sent, mut got, end) = (false, Vec::new(), soon());
        while got != word.as_bytes() {
            if Instant::now() > end {
                return Err(format!("the server did not say {word:?}").into());
            }
            let now = GuestTime::from_micros(self.start.elapsed().as_micros() as i64);
            self.iface.poll(now, &mut self.nic, &mut self.sockets);
            let Some((_, smoltcp::socket::Socket::Tcp(s))) = self.sockets.iter_mut().next() else { unreachable!() };
            if !sent && s.can_send() {
                sent = s.send_slice(word.as_bytes()).is_ok();
            }
            if s.can_recv() {
                s.recv(|b| (b.len(), got.extend_from_slice(b))).map_err(|e| e.to_string())?;
            }
            rustix::event::poll(
                &mut [rustix::event::PollFd::new(&self.nic.0, rustix::event::PollFlags::IN)],
                Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 5_000_000 }),
            )?;
        }
        println!("the server says {word:?}");
        Ok(())
    }
}
