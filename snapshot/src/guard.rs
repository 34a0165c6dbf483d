//! Stands between a codec and the types that it decodes, and believes nothing that the bytes cannot bear out.
//!
//! A length in the bytes may lie. It would cost memory where a codec or a collection allocates what is announced, time where the
//! elements have no bytes, and the stack where a type is recursive. So a sequence that announces more elements than bytes are left
//! is refused, strings and byte strings are borrowed before they are copied, and nesting has a limit.

use core::cell::Cell;
use core::fmt;
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor};

/// Deepest nesting of a state: structs, options, sequences, enums within each other.
const MAX_DEPTH: u32 = 64;

/// Why the guard refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// More elements than bytes are left.
    TooShort,
    /// Nested too deeply.
    TooDeep,
}

/// What is known of the bytes that are being decoded.
pub(crate) struct Budget {
    /// Bytes not decoded yet, at most.
    left: Cell<usize>,
    refused: Cell<Option<Refusal>>,
}

impl Budget {
    pub(crate) fn new(len: usize) -> Budget {
        Budget { left: Cell::new(len), refused: Cell::new(None) }
    }

    /// Whether decoding failed because the guard refused.
    pub(crate) fn refused(&self) -> Option<Refusal> {
        self.refused.get()
    }

    /// The codec reads `n` bytes, if they are there: that is for it to say.
    fn take(&self, n: usize) {
        self.left.set(self.left.get().saturating_sub(n));
    }

    fn refuse<E: Error>(&self, why: Refusal) -> E {
        self.refused.set(Some(why));
        E::custom("refused")
    }

    fn allow<E: Error>(&self, elements: Option<usize>) -> Result<(), E> {
        if elements.is_none_or(|n| n > self.left.get()) { Err(self.refuse(Refusal::TooShort)) } else { Ok(()) }
    }
}

/// A deserializer, a visitor, a seed or an access, guarded.
pub(crate) struct Guard<'b, T> {
    inner: T,
    budget: &'b Budget,
    depth: u32,
}

impl<'b, T> Guard<'b, T> {
    pub(crate) fn new(inner: T, budget: &'b Budget) -> Self {
        Guard { inner, budget, depth: 0 }
    }

    fn with<U>(&self, inner: U) -> Guard<'b, U> {
        Guard { inner, budget: self.budget, depth: self.depth }
    }

    /// One level further in.
    fn within<U, E: Error>(&self, inner: U) -> Result<Guard<'b, U>, E> {
        if self.depth == MAX_DEPTH {
            return Err(self.budget.refuse(Refusal::TooDeep));
        }
        Ok(Guard { inner, budget: self.budget, depth: self.depth + 1 })
    }
}

/// Methods for what has `$bytes` bytes of its own, and nothing within that could be more than they are.
macro_rules! scalars {
    ($($method:ident $bytes:literal),+ $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.budget.take($bytes);
            self.inner.$method(visitor)
        }
    )+};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Guard<'_, D> {
    type Error = D::Error;

    scalars! {
        deserialize_any 0, deserialize_bool 1, deserialize_i8 1, deserialize_i16 2, deserialize_i32 4, deserialize_i64 8,
        deserialize_i128 16, deserialize_u8 1, deserialize_u16 2, deserialize_u32 4, deserialize_u64 8, deserialize_u128 16,
        deserialize_f32 4, deserialize_f64 8, deserialize_char 1, deserialize_unit 0, deserialize_identifier 0,
        deserialize_ignored_any 0,
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.budget.take(8);
        let visitor = self.with(visitor);
        self.inner.deserialize_str(visitor)
    }

    // Borrowed from the bytes, which shows that they are there.
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.budget.take(8);
        let visitor = self.with(visitor);
        self.inner.deserialize_bytes(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.budget.take(1);
        let visitor = self.within(visitor)?;
        self.inner.deserialize_option(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        let visitor = self.within(visitor)?;
        self.inner.deserialize_newtype_struct(name, visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.budget.take(8);
        let visitor = self.within(Counted(visitor))?;
        self.inner.deserialize_seq(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, D::Error> {
        let visitor = self.within(visitor)?;
        self.inner.deserialize_tuple(len, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(self, name: &'static str, len: usize, visitor: V) -> Result<V::Value, D::Error> {
        let visitor = self.within(visitor)?;
        self.inner.deserialize_tuple_struct(name, len, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.budget.take(8);
        let visitor = self.within(visitor)?;
        self.inner.deserialize_map(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = self.within(visitor)?;
        self.inner.deserialize_struct(name, fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.budget.take(4);
        let visitor = self.within(visitor)?;
        self.inner.deserialize_enum(name, variants, visitor)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Guard<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_borrowed_str<E: Error>(self, v: &'de str) -> Result<V::Value, E> {
        self.budget.take(v.len());
        self.inner.visit_borrowed_str(v)
    }

    fn visit_borrowed_bytes<E: Error>(self, v: &'de [u8]) -> Result<V::Value, E> {
        self.budget.take(v.len());
        self.inner.visit_borrowed_bytes(v)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<V::Value, D::Error> {
        let d = self.with(d);
        self.inner.visit_some(d)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<V::Value, D::Error> {
        let d = self.with(d);
        self.inner.visit_newtype_struct(d)
    }

    /// Of a tuple or struct: its type says how many elements it has.
    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = self.with(access);
        self.inner.visit_seq(access)
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.budget.allow(access.size_hint())?;
        let access = self.with(access);
        self.inner.visit_map(access)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = self.with(access);
        self.inner.visit_enum(access)
    }
}

/// The visitor of a sequence whose length stands in the bytes.
struct Counted<V>(V);

impl<'de, V: Visitor<'de>> Visitor<'de> for Guard<'_, Counted<V>> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.0.expecting(f)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.budget.allow(access.size_hint())?;
        let access = self.with(access);
        self.inner.0.visit_seq(access)
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Guard<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<S::Value, D::Error> {
        let d = self.with(d);
        self.inner.deserialize(d)
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Guard<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        let seed = self.with(seed);
        self.inner.next_element_seed(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Guard<'_, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        let seed = self.with(seed);
        self.inner.next_key_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let seed = self.with(seed);
        self.inner.next_value_seed(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, 'b, A: EnumAccess<'de>> EnumAccess<'de> for Guard<'b, A> {
    type Error = A::Error;
    type Variant = Guard<'b, A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        let Guard { inner, budget, depth } = self;
        let (value, variant) = inner.variant_seed(seed)?;
        Ok((value, Guard { inner: variant, budget, depth }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Guard<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        let seed = self.with(seed);
        self.inner.newtype_variant_seed(seed)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        let visitor = self.with(visitor);
        self.inner.tuple_variant(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, A::Error> {
        let visitor = self.with(visitor);
        self.inner.struct_variant(fields, visitor)
    }
}
