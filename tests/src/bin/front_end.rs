//! A vhost-user front end whose guest is the network namespace that it runs in: a TAP stands for the guest's interface.
//!
//! ```text
//! usage: front_end SOCKET IFNAME [KEY=VALUE...]
//!   size=N       entries of each queue (256)
//!   pairs=N      pairs of queues, each of which is a queue of the TAP (1)
//!   buffer=N     length of a buffer to receive into (1536)
//!   features=HEX features that the guest takes if they are offered (all)
//!   inflight=1   which buffers the back end has taken is noted in memory that outlives it
//!   listen=1     it listens at the socket, in place of connecting to it
//!   orders=PATH  where it listens for orders
//! ```
//!
//! An order is a line over a connection of its own, answered by a line. The guest stands still meanwhile, and goes on whatever comes of it:
//!
//! ```text
//!   move SOCKET     to another back end, with the state of this one, which is left
//!   stay            the state is saved, but the guest goes on here
//!   keep FILE       the same, and the state is written into a file
//!   break N         of the state N bytes are read, then nobody reads on
//!   return          the back end gets the state back that it gave, which it must not take
//!   spoil SOCKET    another back end gets a state that is damaged, and the guest goes on here
//!   use N           from now on the guest uses N of its pairs of queues
//!   remap N         the guest's memory is handed over anew, N times, while its rings run
//!   again           the connection is ended, and another begins
//! ```
//!
//! It waits for the other side, prints `ready` when the guest has its interface, and begins anew when the back end has gone, as QEMU does with
//! `reconnect-ms=` or `server=on`.

use hibernet::sys::tun::{self, TunOptions};
use hibernet_tests::vmm::{FrontEnd, Options};
use rustix::event::{PollFd, PollFlags, poll};
use std::error::Error;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// Length of the virtio-net header of a TAP, and of vhost-user, where the number of buffers follows.
const TAP_HEADER: usize = 10;
const HEADER: usize = 12;
/// Frames taken from the guest before others have their turn.
const BURST: usize = 64;
const RETRY: Duration = Duration::from_millis(10);

fn connect(path: &str) -> UnixStream {
    loop {
        match UnixStream::connect(path) {
            Ok(s) => return s,
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}

/// Where back ends come from.
enum Peers {
    Path(String),
    Listener(UnixListener),
}

impl Peers {
    /// Waits for the next.
    fn next(&self) -> io::Result<UnixStream> {
        match self {
            Peers::Path(path) => Ok(connect(path)),
            Peers::Listener(l) => Ok(l.accept()?.0),
        }
    }
}

/// Frames from a queue of the guest's interface to the back end, by a pair of queues.
fn send(tap: &mut File, front: &mut FrontEnd, pair: u32, buffer: &mut [u8]) -> io::Result<()> {
    let queue = front.queue(2 * pair + 1);
    queue.reclaim();
    for _ in 0..BURST {
        if queue.free() == 0 {
            break;
        }
        // The two bytes in between are the number of buffers, 0 in this direction.
        let n = match tap.read(&mut buffer[HEADER - TAP_HEADER..]) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) => return Err(e),
        };
        let start = HEADER - TAP_HEADER;
        buffer.copy_within(start..start + TAP_HEADER, 0);
        buffer[TAP_HEADER..HEADER].fill(0);
        queue.send(&buffer[..start + n]);
    }
    front.kick();
    Ok(())
}

/// Frames from the back end to a queue of the guest's interface.
fn receive(tap: &mut File, front: &mut FrontEnd, pair: u32) {
    loop {
        while let Some((header, frame)) = front.receive_by(pair) {
            // One that the interface does not take is lost, as on a wire.
            let _ = tap.write_vectored(&[IoSlice::new(&header[..TAP_HEADER]), IoSlice::new(&frame)]);
        }
        front.refill();
        let queue = front.queue(2 * pair);
        queue.want_calls();
        if !queue.has_used() {
            return;
        }
    }
}

fn receive_all(taps: &mut [File], front: &mut FrontEnd) {
    (0..).zip(taps).for_each(|(pair, tap)| receive(tap, front, pair));
}

/// Carries an order out; what came of it.
fn obey(front: &mut FrontEnd, guest: &mut Guest, order: &str) -> Result<String, Box<dyn Error>> {
    let (what, argument) = order.split_once(' ').unwrap_or((order, ""));
    match what {
        "use" => {
            guest.used = argument.parse()?;
            let pairs = 1 + front.others.len() as u32;
            (0..2 * pairs).try_for_each(|n| front.enable_ring(n, n / 2 < guest.used))?;
            return Ok("done".into());
        }
        "remap" => {
            (0..argument.parse()?).try_for_each(|_: u32| front.share_memory())?;
            return Ok("done".into());
        }
        "again" => {
            let next = guest.peers.next()?;
            front.go_on(next)?;
            return Ok("done".into());
        }
        _ => {}
    }
    front.stop_rings()?;
    let (at_most, saved) = if what == "break" { (argument.parse()?, false) } else { (u64::MAX, true) };
    let begin = Instant::now();
    let mut state = match (front.save(at_most)?, saved) {
        (Some(state), true) => state,
        (None, false) => {
            front.start_rings()?;
            return Ok("it was not saved".into());
        }
        (_, true) => {
            front.start_rings()?;
            return Err("the state cannot be saved".into());
        }
        (_, false) => return Err("the back end says that it saved a state that nobody read".into()),
    };
    match what {
        "move" => {
            let (_old, true) = front.move_to(connect(argument), &state)? else {
                front.start_rings()?;
                return Err("it does not take the state".into());
            };
        }
        "return" => {
            if front.load(&state)? {
                return Err("it takes a state although it had a guest".into());
            }
            front.start_rings()?;
        }
        "keep" => {
            std::fs::write(argument, &state)?;
            front.start_rings()?;
        }
        "spoil" => {
            let middle = state.len() / 2;
            state[middle] ^= 1;
            let (_other, false) = front.move_to(connect(argument), &state)? else {
                return Err("it takes a damaged state".into());
            };
            front.start_rings()?;
        }
        _ => front.start_rings()?,
    }
    Ok(format!("done: {} bytes in {} us", state.len(), begin.elapsed().as_micros()))
}

/// Takes an order, if there is one.
fn take_order(front: &mut FrontEnd, guest: &mut Guest) -> Result<(), Box<dyn Error>> {
    let Some(Ok((stream, _))) = guest.orders.as_ref().map(UnixListener::accept) else { return Ok(()) };
    stream.set_nonblocking(false)?;
    let mut order = String::new();
    BufReader::new(&stream).read_line(&mut order)?;
    let said = obey(front, guest, order.trim()).unwrap_or_else(|e| format!("error: {e}"));
    Ok(writeln!(&stream, "{said}")?)
}

/// What is beside the device.
struct Guest {
    peers: Peers,
    orders: Option<UnixListener>,
    /// How many pairs of queues it sends by.
    used: u32,
}

/// Serves one back end, until it has gone.
fn serve(taps: &mut [File], front: &mut FrontEnd, buffer: &mut [u8], guest: &mut Guest) -> Result<(), Box<dyn Error>> {
    loop {
        // A buffer that came back before it was asked for is not announced.
        let mut come_back = false;
        let mut from_taps = Vec::new();
        for pair in (0..taps.len() as u32).map(|n| n % guest.used) {
            let queue = front.queue(2 * pair + 1);
            queue.reclaim();
            let full = queue.free() == 0;
            if full {
                queue.want_calls();
            } else {
                queue.refuse_calls();
            }
            from_taps.push(if full { PollFlags::empty() } else { PollFlags::IN });
            come_back |= full && queue.has_used();
        }
        let mut fds = vec![PollFd::new(front.socket(), PollFlags::IN)];
        for (pair, tap) in taps.iter().enumerate() {
            fds.push(PollFd::from_borrowed_fd(front.call_fd(2 * pair), PollFlags::IN));
            fds.push(PollFd::from_borrowed_fd(front.call_fd(2 * pair + 1), PollFlags::IN));
            fds.push(PollFd::from_borrowed_fd(tap.as_fd(), from_taps[pair]));
        }
        fds.extend(guest.orders.as_ref().map(|o| PollFd::new(o, PollFlags::IN)));
        let now = rustix::event::Timespec::default();
        poll(&mut fds, come_back.then_some(&now))?;
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            return Ok(());
        }
        if ready.get(1 + 3 * taps.len()).is_some_and(|order| *order) {
            take_order(front, guest)?;
            receive_all(taps, front);
            continue;
        }
        for ((pair, tap), ready) in taps.iter_mut().enumerate().zip(ready[1..].chunks(3)) {
            if ready[0] {
                front.called(2 * pair, Duration::ZERO);
                receive(tap, front, pair as u32);
            }
            if ready[1] {
                front.called(2 * pair + 1, Duration::ZERO);
            }
            if ready[2] {
                send(tap, front, pair as u32 % guest.used, buffer)?;
            }
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(ifname)) = (args.next(), args.next()) else {
        return Err("usage: front_end SOCKET IFNAME [KEY=VALUE...]".into());
    };
    let mut options = Options { features: !0, ..Options::default() };
    let (mut orders, mut listens, mut notes) = (None, false, false);
    for arg in args {
        match arg.split_once('=') {
            Some(("size", v)) => options.size = v.parse()?,
            Some(("pairs", v)) => options.pairs = v.parse()?,
            Some(("buffer", v)) => options.rx_buffer = v.parse()?,
            Some(("features", v)) => options.features = u64::from_str_radix(v.trim_start_matches("0x"), 16)?,
            Some(("listen", "1")) => listens = true,
            Some(("inflight", "1")) => notes = true,
            Some(("orders", v)) => {
                let listener = UnixListener::bind(v)?;
                listener.set_nonblocking(true)?;
                orders = Some(listener);
            }
            _ => return Err(format!("{arg}: no such option").into()),
        }
    }
    let open = |n| tun::open(&TunOptions { name: &ifname, create: n == 0, mtu: None, multi_queue: options.pairs > 1 });
    let mut taps = (0..options.pairs).map(|n| Ok(File::from(open(n)?.fd))).collect::<Result<Vec<_>, tun::TunError>>()?;
    let mut buffer = vec![0; 80 << 10];
    // One that was killed has left its file.
    let peers = if listens {
        let _ = std::fs::remove_file(&path);
        Peers::Listener(UnixListener::bind(&path)?)
    } else {
        Peers::Path(path)
    };
    let mut guest = Guest { peers, orders, used: options.pairs as u32 };
    let mut front = FrontEnd::new(guest.peers.next()?, options);
    front.negotiate()?;
    if notes {
        front.make_inflight()?;
        front.share_inflight()?;
    }
    front.share_memory()?;
    front.begin_rings()?;
    println!("ready");
    loop {
        serve(&mut taps, &mut front, &mut buffer, &mut guest)?;
        // One that is about to go may still take the connection.
        while front.go_on(guest.peers.next()?).is_err() {
            std::thread::sleep(RETRY);
        }
        receive_all(&mut taps, &mut front);
    }
}
