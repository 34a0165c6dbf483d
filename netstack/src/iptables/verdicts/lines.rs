//! Which paths a connection's packets take.

use super::key::STAGES;
use crate::conntrack::ConnId;

/// Lines are allocated so many at a time.
const CHUNK: usize = 512;

/// The paths of one connection, by direction and stage; 0 for none. Two lines are a cache line.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    generation: u32,
    epoch: u32,
    paths: [u32; 2 * STAGES],
}

const _: () = assert!(size_of::<Line>() == 32);

/// Lines by slot of the connection.
#[derive(Debug)]
pub(super) struct Lines {
    /// Lines of another epoch are void. Never 0, which is that of lines never written.
    epoch: u32,
    chunks: Vec<Box<[Line]>>,
}

impl Default for Lines {
    fn default() -> Self {
        Lines { epoch: 1, chunks: Vec::new() }
    }
}

impl Lines {
    /// Voids all lines.
    pub(super) fn forget(&mut self) {
        match self.epoch.checked_add(1) {
            Some(next) => self.epoch = next,
            None => self.clear(),
        }
    }

    /// Drops all lines.
    pub(super) fn clear(&mut self) {
        *self = Lines::default();
    }

    /// A path of a connection.
    #[inline]
    pub(super) fn get(&self, id: ConnId, place: usize) -> Option<u32> {
        let line = self.chunks.get(id.index as usize / CHUNK)?.get(id.index as usize % CHUNK)?;
        let valid = (line.generation, line.epoch) == (id.generation, self.epoch);
        line.paths.get(place).copied().filter(|&n| valid && n != 0)
    }

    /// Notes a path of a connection.
    pub(super) fn put(&mut self, id: ConnId, place: usize, path: u32) {
        let chunk = id.index as usize / CHUNK;
        if chunk >= self.chunks.len() {
            self.chunks.resize_with(chunk + 1, Box::default);
        }
        let lines = &mut self.chunks[chunk];
        if lines.is_empty() {
            *lines = vec![Line::default(); CHUNK].into();
        }
        let line = &mut lines[id.index as usize % CHUNK];
        if (line.generation, line.epoch) != (id.generation, self.epoch) {
            *line = Line { generation: id.generation, epoch: self.epoch, paths: Default::default() };
        }
        if let Some(place) = line.paths.get_mut(place) {
            *place = path;
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let lines: usize = self.chunks.iter().map(|c| size_of_val(&**c)).sum();
        lines + self.chunks.capacity() * size_of::<Box<[Line]>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ConnId = ConnId { index: 700, generation: 3 };

    #[test]
    fn a_line_is_of_one_generation_and_one_epoch() {
        let mut lines = Lines::default();
        assert_eq!(lines.get(ID, 0), None);
        lines.put(ID, 0, 5);
        lines.put(ID, 4, 6);
        assert_eq!((lines.get(ID, 0), lines.get(ID, 1), lines.get(ID, 4)), (Some(5), None, Some(6)));
        let next = ConnId { generation: 5, ..ID };
        assert_eq!(lines.get(next, 0), None);
        lines.put(next, 1, 7);
        assert_eq!((lines.get(next, 0), lines.get(next, 1), lines.get(ID, 1)), (None, Some(7), None));
        lines.forget();
        assert_eq!(lines.get(next, 1), None);
    }

    #[test]
    fn a_line_of_long_ago_is_not_of_an_epoch_of_the_same_number() {
        let mut lines = Lines::default();
        lines.put(ID, 0, 5);
        lines.epoch = u32::MAX;
        lines.forget();
        assert_eq!((lines.epoch, lines.get(ID, 0)), (1, None));
    }

    #[test]
    fn memory_is_what_connections_need() {
        let mut lines = Lines::default();
        assert_eq!(lines.bytes(), 0);
        (0..1024).for_each(|index| lines.put(ConnId { index, generation: 1 }, 0, 1));
        assert!(lines.bytes() <= 1024 * 32 + 64, "{}", lines.bytes());
    }
}
