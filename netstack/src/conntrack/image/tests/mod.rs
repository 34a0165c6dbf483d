//! Tests of images.

mod hostile;
mod kit;
mod round_trip;
mod twin;
