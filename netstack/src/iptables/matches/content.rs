//! Tests of what is in a packet: `string`, `u32`.

use super::bytes::Bytes;
use crate::iptables::{Bulk, Inv, StringMatch, U32Step, U32Test};
use crate::skb::Skb;

/// `string`, ready to search: Knuth, Morris and Pratt's way, which reads every byte once, whatever `--algo` says.
#[derive(Debug)]
pub(in crate::iptables) struct Search {
    not: bool,
    icase: bool,
    from: usize,
    to: usize,
    pattern: Vec<u8>,
    /// Length of the longest start of the pattern that ends at each of its places, shorter than up to there.
    failure: Vec<u8>,
}

impl Search {
    pub(super) fn new(m: &StringMatch) -> Search {
        let mut pattern = m.pattern.clone();
        if m.icase {
            pattern.make_ascii_uppercase();
        }
        let mut failure = vec![0u8; pattern.len()];
        let mut k = 0usize;
        for i in 1..pattern.len() {
            while k > 0 && pattern[i] != pattern[k] {
                k = usize::from(failure[k - 1]);
            }
            k += usize::from(pattern[i] == pattern[k]);
            failure[i] = k as u8;
        }
        Search { not: m.not, icase: m.icase, from: m.span.0.into(), to: m.span.1.into(), pattern, failure }
    }

    /// Whether a packet fits.
    pub(super) fn fits(&self, skb: &Skb<'_>, bulk: &dyn Bulk) -> bool {
        self.found(&mut Bytes::new(skb, bulk)) != self.not
    }

    fn found(&self, bytes: &mut Bytes<'_>) -> bool {
        let mut k = 0usize;
        for at in self.from..self.to.min(bytes.len()) {
            let Some(mut b) = bytes.get(at) else { return false };
            if self.icase {
                b.make_ascii_uppercase();
            }
            while k > 0 && self.pattern.get(k) != Some(&b) {
                k = usize::from(self.failure[k - 1]);
            }
            k += usize::from(self.pattern.get(k) == Some(&b));
            if k == self.pattern.len() {
                return true;
            }
        }
        false
    }
}

/// `u32`: all tests fit. One that would read behind the packet's end does not, and neither does its inverse help.
pub(super) fn u32(m: &Inv<Vec<U32Test>>, skb: &Skb<'_>, bulk: &dyn Bulk) -> bool {
    let mut bytes = Bytes::new(skb, bulk);
    m.value.iter().all(|test| value(test, &mut bytes).is_some_and(|v| test.values.iter().any(|(a, b)| *a <= v && v <= *b)))
        != m.not
}

/// What a test reads.
fn value(test: &U32Test, bytes: &mut Bytes<'_>) -> Option<u32> {
    let mut base = 0u32;
    let mut v = bytes.be32(test.start as usize)?;
    for step in &test.steps {
        match *step {
            U32Step::And(n) => v &= n,
            U32Step::Left(n) => v = v.checked_shl(n).unwrap_or(0),
            U32Step::Right(n) => v = v.checked_shr(n).unwrap_or(0),
            U32Step::At(n) => {
                base = base.checked_add(v)?;
                v = bytes.be32(base.checked_add(n)? as usize)?;
            }
        }
    }
    Some(v)
}
