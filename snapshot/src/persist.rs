//! Saving and restoring of components.

/// A component whose state can be saved apart from the resources it works with.
///
/// The state is a struct of its own, beside the live one: plain data, deterministic, without pointers, descriptors, secrets,
/// or instants of a host clock (deadlines are remaining times, or stack time). What cannot be saved is handed in again
/// at restore.
pub trait Persist: Sized {
    /// What is saved.
    type State;
    /// What the component needs and an image cannot hold: handles, keys, limits, links.
    type Resources;
    /// Why a state is refused: it passed its CRC, but cannot be true.
    type Error;

    /// The state now. Changes nothing.
    fn save(&self) -> Self::State;

    /// A component that goes on where the saved one stood.
    fn restore(state: Self::State, resources: Self::Resources) -> Result<Self, Self::Error>;
}
