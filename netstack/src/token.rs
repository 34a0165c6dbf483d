//! Names of the stack's objects.

use core::num::NonZeroU64;
use serde::{Deserialize, Serialize};

/// Bits of a slot, and of a generation.
const PART: u32 = 0xfff_ffff;

/// Kinds of objects that own sockets or deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum TokenKind {
    /// A TCP flow.
    Tcp = 1,
    /// A UDP flow.
    Udp,
    /// An ICMP echo flow.
    Icmp,
    /// A forwarded DNS query.
    Dns,
    /// A published UDP port's socket; the index is that of the published port.
    UdpListener,
    /// Housekeeping of the gateway services.
    Gateway,
    /// Housekeeping of IP (reassembly).
    Ip,
    /// The reaper of tracked connections.
    Conntrack,
}

/// Names an object of the stack to the edge: kind, slot, generation. An event for a slot that was given to
/// another object since is recognised and ignored. Where several workers share something, it also says whose object it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "u64", try_from = "u64")]
pub struct Token(NonZeroU64);

impl From<Token> for u64 {
    fn from(t: Token) -> u64 {
        t.bits()
    }
}

/// A word that names no object of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:#x} names nothing that the stack has")]
pub struct NoToken(u64);

impl TryFrom<u64> for Token {
    type Error = NoToken;

    fn try_from(bits: u64) -> Result<Self, NoToken> {
        Token::from_bits(bits).ok_or(NoToken(bits))
    }
}

impl core::fmt::Debug for Token {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}#{}.{}", self.kind(), self.index(), self.generation())?;
        if self.worker() > 0 { write!(f, "@{}", self.worker()) } else { Ok(()) }
    }
}

impl Token {
    /// From its parts; `generation` and `index` are cut to 28 bits.
    pub const fn new(kind: TokenKind, index: u32, generation: u32) -> Self {
        let bits = (kind as u64) << 60 | ((generation & PART) as u64) << 32 | (index & PART) as u64;
        // The kind is not 0.
        Token(match NonZeroU64::new(bits) {
            Some(bits) => bits,
            None => NonZeroU64::MIN,
        })
    }

    /// As one word, for an event queue.
    pub const fn bits(self) -> u64 {
        self.0.get()
    }

    /// From [`Token::bits`]; `None` if no token has them.
    pub const fn from_bits(bits: u64) -> Option<Self> {
        match (bits >> 60, NonZeroU64::new(bits)) {
            (1..=8, Some(bits)) => Some(Token(bits)),
            _ => None,
        }
    }

    /// What kind of object.
    pub const fn kind(self) -> TokenKind {
        match self.bits() >> 60 {
            1 => TokenKind::Tcp,
            2 => TokenKind::Udp,
            3 => TokenKind::Icmp,
            4 => TokenKind::Dns,
            5 => TokenKind::UdpListener,
            6 => TokenKind::Gateway,
            7 => TokenKind::Ip,
            _ => TokenKind::Conntrack,
        }
    }

    /// Slot of the object.
    pub const fn index(self) -> u32 {
        self.bits() as u32 & PART
    }

    /// The same object as others know it whose workers have such objects too: that of this worker, 0 to 15.
    #[must_use]
    pub const fn of_worker(self, worker: u8) -> Self {
        let bits = self.bits() & !(0xf << 28) | ((worker & 0xf) as u64) << 28;
        match NonZeroU64::new(bits) {
            Some(bits) => Token(bits),
            None => self,
        }
    }

    /// Whose object it is.
    pub const fn worker(self) -> u8 {
        (self.bits() >> 28) as u8 & 0xf
    }

    /// Generation of the slot.
    pub const fn generation(self) -> u32 {
        (self.bits() >> 32) as u32 & PART
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_of_one_worker_and_has_its_parts_whatever_that_is() {
        for worker in 0..16 {
            let own = Token::new(TokenKind::Udp, 77, 5);
            let token = own.of_worker(worker);
            assert_eq!((token.kind(), token.index(), token.generation(), token.worker()), (TokenKind::Udp, 77, 5, worker));
            assert_eq!(token.of_worker(0), own);
            assert_eq!(Token::from_bits(token.bits()), Some(token));
        }
    }
}
