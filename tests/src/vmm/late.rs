//! Bodies of frames that are not here yet, without a kernel that has them.

use hibernet::link::Unread;
use std::io;
use vm_memory::{Bytes, VolatileSlice};

/// See the module's documentation.
#[derive(Debug)]
pub struct LateBody {
    bytes: Vec<u8>,
    /// So many times only a part of it is copied.
    short: u32,
}

impl LateBody {
    /// Of these bytes; the first `short` times that they are asked for only half of them come.
    pub fn new(bytes: &[u8], short: u32) -> LateBody {
        LateBody { bytes: bytes.to_vec(), short }
    }
}

impl Unread for LateBody {
    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn read_to<'m>(&mut self, places: &mut dyn Iterator<Item = VolatileSlice<'m>>) -> io::Result<()> {
        let end = if self.short > 0 { self.bytes.len() / 2 } else { self.bytes.len() };
        let mut rest = &self.bytes[..end];
        for place in places {
            assert!(place.len() <= rest.len() || self.short > 0, "more room than bytes");
            let n = place.len().min(rest.len());
            place.write_slice(&rest[..n], 0).expect("a place of this length");
            rest = &rest[n..];
        }
        let whole = rest.is_empty() && self.short == 0;
        self.short = self.short.saturating_sub(1);
        if whole { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}
