//! Encoding of the small sections: the only place that knows which codec it is.
//!
//! Integers have a fixed length and are little-endian, lengths are 64 bits, an enum's variant is 32 bits. The encoding says nothing
//! of itself: what it means is known from the section's kind and version alone, so the types that are encoded never change once
//! they are released ([`crate::SectionState`] says how a new version is made).
//!
//! States have no recursive types, and no elements of size zero in sequences. `serde(default)`, `skip_serializing_if`, `flatten`,
//! `tag` and `untagged` cannot work with an encoding that is not self-describing.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian, standard};
use bincode::error::DecodeError;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest encoded state in bytes.
pub const MAX_STATE_LEN: usize = 64 << 20;

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

/// Decodes a state whose checksum was found right. All of `bytes` must be used.
///
/// # Errors
/// [`CodecError::TooLong`], [`CodecError::TooShort`], [`CodecError::LeftOver`], [`CodecError::Invalid`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_STATE_LEN {
        return Err(CodecError::TooLong { len: bytes.len() });
    }
    let (state, used) = bincode::serde::decode_from_slice(bytes, CONFIG).map_err(|e| match e {
        DecodeError::UnexpectedEnd { .. } | DecodeError::LimitExceeded => CodecError::TooShort,
        other => CodecError::Invalid(other.to_string()),
    })?;
    if used == bytes.len() { Ok(state) } else { Err(CodecError::LeftOver(bytes.len() - used)) }
}
