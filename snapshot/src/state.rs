//! Versions of the states in plain sections.

use crate::{CodecError, Known, SectionKind, decode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A state that has a section of its own.
///
/// Once a version was released, its type is frozen. To change the state: keep the old type under another name (`TableV1`), give
/// the new one the next [`Self::VERSION`], write `From<TableV1>` for it, and add an [`Upgrade`]. The golden images show that old
/// images load, and that no type changed without its version.
///
/// ```
/// use hibernet_snapshot::{SectionKind, SectionState, Upgrade, decode, decode_version, encode};
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
/// impl SectionState for Limits {
///     const KIND: SectionKind = SectionKind(9);
///     const VERSION: u16 = 2;
///     const UPGRADES: &'static [Upgrade<Limits>] = &[Upgrade { from: 1, decode: |b| decode::<LimitsV1>(b).map(Limits::from) }];
/// }
///
/// let old = encode(&LimitsV1 { connections: 5 })?;
/// assert_eq!(decode_version::<Limits>(1, &old)?, Limits { connections: 5, flows: 100 });
/// # Ok::<(), hibernet_snapshot::CodecError>(())
/// ```
pub trait SectionState: Serialize + DeserializeOwned + 'static {
    /// The kind of its section.
    const KIND: SectionKind;
    /// The version that is written.
    const VERSION: u16;
    /// How older versions are read, oldest first, without gaps. With three versions: `from: 1` decodes `V1` and goes through
    /// `V2`, `from: 2` decodes `V2`.
    const UPGRADES: &'static [Upgrade<Self>] = &[];

    /// What a reader knows who knows this state.
    fn known() -> Known {
        Known::new(Self::KIND, Self::UPGRADES.first().map_or(Self::VERSION, |u| u.from)..=Self::VERSION)
    }
}

/// How a state of an older version becomes one of the current version.
#[derive(Debug)]
pub struct Upgrade<T> {
    /// The older version.
    pub from: u16,
    /// Decodes its body and converts it.
    pub decode: fn(&[u8]) -> Result<T, CodecError>,
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
