//! Versions of the states in plain sections.

use crate::{CodecError, Known, SectionKind, decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A state that has a section of its own.
///
/// Once a version was released, its type is frozen. To change the state: keep the old type under another name (`TableV1`), give
/// the new one the next [`Self::VERSION`], write `From<TableV1>` for it and the way back, `TryFrom<&Table> for TableV1`, and add an
/// [`Upgrade`] and a level to [`Self::SINCE`]. The golden images show that old images load, and that no type changed without its version.
///
/// ```
/// use hibernet_snapshot::{Inexpressible, SectionKind, SectionState, Upgrade, decode_version, encode, encode_version};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct LimitsV1 {
///     connections: u32,
/// }
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize)]
/// struct Limits {
///     connections: u64,
///     flows: u64,
/// }
///
/// impl From<LimitsV1> for Limits {
///     fn from(old: LimitsV1) -> Limits {
///         Limits { connections: old.connections.into(), flows: 100 }
///     }
/// }
///
/// impl TryFrom<&Limits> for LimitsV1 {
///     type Error = Inexpressible;
///
///     fn try_from(new: &Limits) -> Result<LimitsV1, Inexpressible> {
///         let connections = new.connections.try_into().map_err(|_| Inexpressible("so many connections".into()))?;
///         Ok(LimitsV1 { connections })
///     }
/// }
///
/// impl SectionState for Limits {
///     const KIND: SectionKind = SectionKind(9);
///     const VERSION: u16 = 2;
///     const UPGRADES: &'static [Upgrade<Limits>] = &[Upgrade::both_ways::<LimitsV1>(1)];
///     // Written so since images are of level 5.
///     const SINCE: &'static [u16] = &[1, 5];
/// }
///
/// let old = encode(&LimitsV1 { connections: 5 })?;
/// let new = Limits { connections: 5, flows: 100 };
/// assert_eq!(decode_version::<Limits>(1, &old)?, new);
/// assert_eq!(encode_version(1, &new)?, old);
/// assert_eq!((Limits::version_at(4), Limits::version_at(5)), (Some(1), Some(2)));
/// assert!(encode_version(1, &Limits { connections: 1 << 40, ..new }).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait SectionState: Serialize + DeserializeOwned + 'static {
    /// The kind of its section.
    const KIND: SectionKind;
    /// The version that is written.
    const VERSION: u16;
    /// How older versions are read, oldest first, without gaps. With three versions: `from: 1` decodes `V1` and goes through
    /// `V2`, `from: 2` decodes `V2`.
    const UPGRADES: &'static [Upgrade<Self>] = &[];
    /// The levels of images (see [`ImageBuilder::at_level`](crate::ImageBuilder::at_level)) since which it is written in each of its versions, oldest
    /// first.
    const SINCE: &'static [u16] = &[1];

    /// What a reader knows who knows this state.
    fn known() -> Known {
        const { assert!(Self::SINCE.len() == Self::UPGRADES.len() + 1, "a level for each version") };
        Known::new(Self::KIND, Self::UPGRADES.first().map_or(Self::VERSION, |u| u.from)..=Self::VERSION).since(Self::SINCE)
    }

    /// The version in images of a level; `None` if they have no such section.
    fn version_at(level: u16) -> Option<u16> {
        Self::known().at(level).map(|known| known.newest())
    }
}

/// How a state of an older version becomes one of the current version, and the other way round.
#[derive(Debug)]
pub struct Upgrade<T> {
    /// The older version.
    pub from: u16,
    /// Decodes its body and converts it.
    pub decode: fn(&[u8]) -> Result<T, CodecError>,
    /// Converts a state and encodes it in the older version.
    pub encode: fn(&T) -> Result<Vec<u8>, VersionError>,
}

impl<T: 'static> Upgrade<T> {
    /// By way of the type that the state had in version `from`.
    pub const fn both_ways<Old>(from: u16) -> Upgrade<T>
    where
        Old: Serialize + DeserializeOwned + Into<T> + for<'a> TryFrom<&'a T, Error = Inexpressible>,
    {
        Upgrade { from, decode: |body| decode::<Old>(body).map(Into::into), encode: |state| Ok(encode(&Old::try_from(state)?)?) }
    }
}

/// What an older version has no way to say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Inexpressible(pub String);

/// Why a state cannot be written in an older version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VersionError {
    /// It has what that version has no way to say.
    #[error(transparent)]
    Inexpressible(#[from] Inexpressible),
    /// It cannot be encoded, or nobody knows the version.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// Encodes a state in any version that `T` knows.
///
/// # Errors
/// [`VersionError`].
pub fn encode_version<T: SectionState>(version: u16, state: &T) -> Result<Vec<u8>, VersionError> {
    if version == T::VERSION {
        return Ok(encode(state)?);
    }
    let upgrade = T::UPGRADES.iter().find(|u| u.from == version).ok_or(CodecError::UnknownVersion(version))?;
    (upgrade.encode)(state)
}

/// Decodes a body of any version that `T` knows.
///
/// # Errors
/// As [`decode`]; [`CodecError::UnknownVersion`].
pub fn decode_version<T: SectionState>(version: u16, body: &[u8]) -> Result<T, CodecError> {
    if version == T::VERSION {
        return decode(body);
    }
    let upgrade = T::UPGRADES.iter().find(|u| u.from == version).ok_or(CodecError::UnknownVersion(version))?;
    (upgrade.decode)(body)
}
