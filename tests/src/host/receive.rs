//! The receive queue of a TCP socket, with what it costs the kernel.

use std::collections::VecDeque;

/// Memory that a received segment takes beside its data.
const SEGMENT_COST: usize = 768;
/// What comes is put into the last buffer while that has a fragment left: Linux has 17 of 32 KiB.
const LARGEST_BUFFER: usize = 512 << 10;

/// Bytes that were received and not consumed. They lie in buffers, each of which is freed whole, with its last byte.
#[derive(Debug, Default)]
pub(super) struct ReceiveQueue {
    bytes: VecDeque<u8>,
    buffers: VecDeque<Buffer>,
}

#[derive(Debug)]
struct Buffer {
    unconsumed: usize,
    memory: usize,
}

impl ReceiveQueue {
    pub(super) fn push(&mut self, segment: &[u8]) {
        let memory = segment.len() + SEGMENT_COST;
        self.bytes.extend(segment);
        match self.buffers.back_mut() {
            Some(last) if last.memory + memory <= LARGEST_BUFFER => {
                last.unconsumed += segment.len();
                last.memory += memory;
            }
            _ if segment.is_empty() => {}
            _ => self.buffers.push_back(Buffer { unconsumed: segment.len(), memory }),
        }
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.bytes.drain(..n);
        let mut left = n;
        while let Some(first) = self.buffers.front_mut().filter(|_| left > 0) {
            let gone = left.min(first.unconsumed);
            first.unconsumed -= gone;
            left -= gone;
            if first.unconsumed == 0 {
                self.buffers.pop_front();
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Memory that counts against the receive buffer, and so closes the window.
    pub(super) fn memory(&self) -> usize {
        self.buffers.iter().map(|b| b.memory).sum()
    }

    pub(super) fn copy(&self, from: usize, n: usize) -> Vec<u8> {
        self.bytes.range(from..from + n).copied().collect()
    }
}
