//! `hibernet stats`.

use super::{print, print_json};
use crate::control::client::Client;
use crate::control::protocol::Request;
use crate::sandbox::failure::Failure;
use serde_json::Value;
use std::fmt::Write as _;

pub(super) fn stats(name: &str, json: bool) -> Result<u8, Failure> {
    let value: Value = Client::new(name)?.ask(&Request::Stats)?;
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
