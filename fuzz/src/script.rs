//! How a story is written in bytes, so that a fuzzer can change it in small ways.

/// Takes numbers and byte strings from the input; zeroes when it is used up.
#[derive(Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to `n` bytes.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(n.min(self.0.len()));
        self.0 = tail;
        head
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    /// A byte string with its length before it.
    pub fn string(&mut self) -> &'a [u8] {
        let n = self.u16() % 4096;
        self.bytes(usize::from(n))
    }
}

/// What happens next. The number of a kind is its first byte, modulo their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// A frame as it stands: flags, string.
    Raw,
    /// An IP packet with a right header and a transport of which the checksum is made right: family, destination, protocol, string.
    Packet,
    /// A TCP segment placed relative to what the stack last sent for its flow.
    Tcp,
    /// A UDP datagram: family, destination, ports, string.
    Udp,
    /// A fragment: family, destination, protocol, offset, more, identification, string.
    Fragment,
    /// A deed of the peer of a host socket.
    Peer,
    /// A connection to a published port.
    Accept,
    /// Time passes: milliseconds.
    Time,
}

impl Op {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Op; 8] = [Op::Raw, Op::Packet, Op::Tcp, Op::Udp, Op::Fragment, Op::Peer, Op::Accept, Op::Time];
}

/// Writes stories, for seeds.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// The next thing that happens, with its numbers.
    pub fn op(&mut self, op: Op, numbers: &[u8]) -> &mut Self {
        self.0.push(op as u8);
        self.0.extend(numbers);
        self
    }

    /// A byte string with its length.
    pub fn string(&mut self, s: &[u8]) -> &mut Self {
        self.0.extend((s.len() as u16).to_le_bytes());
        self.0.extend(s);
        self
    }
}
