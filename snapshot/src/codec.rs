//! Encoding of the small sections: the only place that knows which codec it is.
//!
//! Integers have a fixed length and are little-endian, lengths are 64 bits, an enum's variant is 32 bits. The encoding says nothing
//! of itself: what it means is known from the section's kind and version alone, so the types that are encoded never change once
//! they are released ([`crate::SectionState`] says how a new version is made).
//!
//! States have no recursive types, and no elements without bytes in sequences (`Vec<()>`): they are refused where the bytes are
//! decoded. `serde(default)`, `skip_serializing_if`, `flatten`,
//! `tag` and `untagged` cannot work with an encoding that is not self-describing.

use crate::guard::{Budget, Guard, Refusal};
use bincode::config::{Configuration, Fixint, Limit, LittleEndian, standard};
use bincode::error::DecodeError;
use core::fmt;
use core::marker::PhantomData;
use serde::de::{DeserializeOwned, DeserializeSeed, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest encoded state in bytes.
pub const MAX_STATE_LEN: usize = 256 << 20;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<MAX_STATE_LEN>> =
    standard().with_little_endian().with_fixed_int_encoding().with_limit();

/// Why a state could not be encoded or decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Longer than a state may be.
    #[error("{len} bytes, but a state has at most {MAX_STATE_LEN}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The bytes end before the state does, or say that something in it is longer than they are.
    #[error("it ends too early")]
    TooShort,
    /// Types within types, further than a state goes.
    #[error("it is nested too deeply")]
    TooDeep,
    /// Bytes are left over.
    #[error("{0} bytes are left over")]
    LeftOver(usize),
    /// The bytes are not of this type.
    #[error("it is not what it says it is: {0}")]
    Invalid(String),
    /// The type cannot be encoded.
    #[error("it cannot be encoded: {0}")]
    Unencodable(String),
    /// No decoder for this version of the section.
    #[error("its version {0} is unknown")]
    UnknownVersion(u16),
}

/// Encodes a state. The same state always gives the same bytes, if its type has a fixed order (no hash maps).
///
/// # Errors
/// [`CodecError::TooLong`]; [`CodecError::Unencodable`] for types that serde cannot hand over without a description.
pub fn encode<T: Serialize>(state: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(state, CONFIG).map_err(|e| CodecError::Unencodable(e.to_string()))?;
    if bytes.len() > MAX_STATE_LEN { Err(CodecError::TooLong { len: bytes.len() }) } else { Ok(bytes) }
}

/// Decodes a state whose checksum was found right. All of `bytes` must be used. Memory is taken as far as `bytes` bear it out: at
/// most their number times the size of the largest element of a sequence, whatever lengths they announce.
///
/// # Errors
/// [`CodecError::TooLong`], [`CodecError::TooShort`], [`CodecError::TooDeep`], [`CodecError::LeftOver`], [`CodecError::Invalid`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_STATE_LEN {
        return Err(CodecError::TooLong { len: bytes.len() });
    }
    let budget = Budget::new(bytes.len());
    let decoded = bincode::serde::seed_decode_from_slice(Guarded(&budget, PhantomData), bytes, CONFIG);
    let (state, used) = decoded.map_err(|e| match (budget.refused(), e) {
        (Some(Refusal::TooDeep), _) => CodecError::TooDeep,
        (Some(Refusal::TooShort), _) | (_, DecodeError::UnexpectedEnd { .. } | DecodeError::LimitExceeded) => {
            CodecError::TooShort
        }
        (None, e) => CodecError::Invalid(e.to_string()),
    })?;
    if used == bytes.len() { Ok(state) } else { Err(CodecError::LeftOver(bytes.len() - used)) }
}

struct Guarded<'b, T>(&'b Budget, PhantomData<T>);

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for Guarded<'_, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<T, D::Error> {
        T::deserialize(Guard::new(d, self.0))
    }
}

/// Bytes that are encoded and decoded as a whole. A `Vec<u8>` has the same encoding, but goes through serde byte by byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
        struct Copied;
        impl<'de> Visitor<'de> for Copied {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }

            /// Of formats that are text.
            fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<Bytes, A::Error> {
                let mut all = Vec::new();
                while let Some(byte) = bytes.next_element()? {
                    all.push(byte);
                }
                Ok(Bytes(all))
            }
        }
        d.deserialize_bytes(Copied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Side {
        Unit,
        One(u16),
        Two(u8, IpAddr),
        Named { text: String, many: Vec<Option<u32>> },
    }

    #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
    struct Wrapped(i128);

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct State {
        on: bool,
        ints: (u8, i16, u32, i64, u128, f64, char),
        wrapped: Wrapped,
        none: (),
        sides: Vec<Side>,
        map: BTreeMap<u16, Bytes>,
        array: [u8; 3],
    }

    fn state() -> State {
        State {
            on: true,
            ints: (1, -2, 3, -4, 5, 0.5, 'é'),
            wrapped: Wrapped(-7),
            none: (),
            sides: vec![
                Side::Unit,
                Side::One(9),
                Side::Two(1, "2001:db8::1".parse().unwrap()),
                Side::Named { text: "text".into(), many: vec![None, Some(3)] },
            ],
            map: BTreeMap::from([(5, Bytes(vec![1, 2, 3])), (6, Bytes::default())]),
            array: [4, 5, 6],
        }
    }

    #[test]
    fn what_was_encoded_is_decoded_and_nothing_shorter_or_longer() {
        let mut bytes = encode(&state()).unwrap();
        assert_eq!(decode(&bytes), Ok(state()));
        for len in 0..bytes.len() {
            assert_eq!(decode::<State>(&bytes[..len]), Err(CodecError::TooShort), "{len}");
        }
        bytes.push(0);
        assert_eq!(decode::<State>(&bytes), Err(CodecError::LeftOver(1)));
    }

    #[test]
    fn integers_have_their_length_and_the_low_byte_first() {
        assert_eq!(encode(&(1u8, 2u16, 3u64)).unwrap(), [1, 2, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(encode(&Side::One(0x0102)).unwrap(), [1, 0, 0, 0, 2, 1]);
        assert_eq!(encode(&vec![Some(1u8), None]).unwrap(), [2, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0]);
        assert_eq!(encode(&Bytes(vec![7])).unwrap(), encode(&vec![7u8]).unwrap());
    }

    #[test]
    fn bytes_that_mean_nothing_are_refused() {
        assert!(matches!(decode::<bool>(&[2]), Err(CodecError::Invalid(_))));
        assert!(matches!(decode::<Option<u8>>(&[7, 0]), Err(CodecError::Invalid(_))));
        assert!(matches!(decode::<Side>(&[9, 0, 0, 0]), Err(CodecError::Invalid(_))));
        assert!(matches!(decode::<String>(&[1, 0, 0, 0, 0, 0, 0, 0, 0xff]), Err(CodecError::Invalid(_))));
        assert!(matches!(decode::<core::num::NonZeroU8>(&[0]), Err(CodecError::Invalid(_))));
    }

    /// Neither stack nor time without end, although no state may have such types.
    #[test]
    fn recursive_types_and_elements_without_bytes_are_refused() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Deep(Option<Box<Deep>>);
        assert_eq!(decode::<Deep>(&vec![1; 1 << 20]), Err(CodecError::TooDeep));
        assert_eq!(decode::<Vec<()>>(&u64::MAX.to_le_bytes()), Err(CodecError::TooShort));
        assert_eq!(decode::<BTreeMap<(), ()>>(&u64::MAX.to_le_bytes()), Err(CodecError::TooShort));
    }

    #[test]
    fn a_state_has_a_greatest_length() {
        let zeros = Bytes(vec![0; MAX_STATE_LEN - 8]);
        let bytes = encode(&zeros).unwrap();
        assert_eq!(bytes.len(), MAX_STATE_LEN);
        assert!(decode::<Bytes>(&bytes) == Ok(zeros));
        assert_eq!(encode(&Bytes(vec![0; MAX_STATE_LEN - 7])), Err(CodecError::TooLong { len: MAX_STATE_LEN + 1 }));
        assert_eq!(decode::<Bytes>(&vec![0; MAX_STATE_LEN + 1]), Err(CodecError::TooLong { len: MAX_STATE_LEN + 1 }));
    }
}
