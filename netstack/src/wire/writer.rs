//! Writing of messages whose length is not known beforehand.

/// Appends to a buffer of fixed size. What does not fit is left out whole, and noted.
#[derive(Debug)]
pub struct Writer<'a> {
    buf: &'a mut [u8],
    len: usize,
    overflow: bool,
}

impl<'a> Writer<'a> {
    /// Starts at the beginning of `buf`.
    pub fn new(buf: &'a mut [u8]) -> Self {
        Writer { buf, len: 0, overflow: false }
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        self.buf.len() - self.len
    }

    /// Whether something did not fit.
    pub fn overflowed(&self) -> bool {
        self.overflow
    }

    /// Appends bytes; returns whether they fitted.
    pub fn put(&mut self, bytes: &[u8]) -> bool {
        match self.buf.get_mut(self.len..self.len + bytes.len()) {
            Some(to) => {
                to.copy_from_slice(bytes);
                self.len += bytes.len();
                true
            }
            None => {
                self.overflow = true;
                false
            }
        }
    }

    /// Appends a 16-bit number in network order.
    pub fn put16(&mut self, v: u16) -> bool {
        self.put(&v.to_be_bytes())
    }

    /// Appends a 32-bit number in network order.
    pub fn put32(&mut self, v: u32) -> bool {
        self.put(&v.to_be_bytes())
    }

    /// Appends `n` zero bytes.
    pub fn zeros(&mut self, n: usize) -> bool {
        match self.buf.get_mut(self.len..self.len + n) {
            Some(to) => {
                to.fill(0);
                self.len += n;
                true
            }
            None => {
                self.overflow = true;
                false
            }
        }
    }

    /// Overwrites bytes written before; nothing happens if there are none at that place.
    pub fn patch(&mut self, at: usize, bytes: &[u8]) {
        if let Some(to) = self.buf[..self.len].get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    }

    /// Takes back everything behind the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// What was written.
    pub fn written(&self) -> &[u8] {
        &self.buf[..self.len]
    }
}
