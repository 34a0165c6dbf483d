//! `hibernet stats`.

use super::{print, print_json};
use crate::control::registry::Registry;
use crate::sandbox::failure::{Failure, Status};
use serde_json::Value;
use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Longest answer that is read.
const MAX_LEN: u64 = 1 << 20;

pub(super) fn stats(name: &str, json: bool) -> Result<u8, Failure> {
    let registry = Registry::open()?;
    registry.get(name)?;
    let path = registry.stats_socket(name);
    let fail = |e| Failure::os(Status::File, format_args!("cannot ask the network worker of '{name}'"), e);
    let stream = UnixStream::connect(&path).map_err(fail)?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(fail)?;
    let mut text = String::new();
    stream.take(MAX_LEN).read_to_string(&mut text).map_err(fail)?;
    let value: Value = serde_json::from_str(&text).map_err(|e| {
        Failure::new(Status::Internal, format!("the network worker of '{name}' gave an answer that cannot be read: {e}"))
    })?;
    if json {
        return print_json(&value);
    }
    let mut out = String::new();
    flatten(&mut out, "", &value);
    print(&out)
}

/// One line per value, zeroes left out.
fn flatten(out: &mut String, path: &str, value: &Value) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(k, v)| flatten(out, &below(k), v)),
        Value::Array(list) => list.iter().enumerate().for_each(|(i, v)| flatten(out, &below(&i.to_string()), v)),
        Value::Number(n) if n.as_f64() == Some(0.0) => {}
        Value::String(s) => {
            let _ = writeln!(out, "{path} {s}");
        }
        v => {
            let _ = writeln!(out, "{path} {v}");
        }
    }
}
