//! Formats of images: what any version wrote is still read, and no format changes without its version.
//!
//! For each format and each of its versions there is a file `NAME.vVERSION.bin` in `golden/images`: the bytes of one canonical value. Today's
//! code must write the same bytes as the file of the current version, read all of them, and write what it has read of an older version in that
//! version again, byte for byte. Files are never changed; with HIBERNET_GOLDEN=write those that are missing are written.

mod container;
mod encoding;
mod levels;
mod stack;

use hibernet_snapshot::{SectionState, decode_version, encode, encode_version};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Every format there is.
fn formats() -> Vec<Format> {
    let mut formats = vec![container::format(), encoding::format()];
    formats.extend(stack::formats());
    formats
}

type Read = dyn Fn(u16, &[u8]) -> Result<(), String>;
type Write = dyn Fn(u16) -> Result<Vec<u8>, String>;

/// Something with versions that stands in images.
struct Format {
    /// For the names of its files.
    name: String,
    /// The oldest version that was ever released, and the current one.
    versions: RangeInclusive<u16>,
    /// The canonical value, in the current version.
    bytes: Vec<u8>,
    /// Reads the canonical value of a version; what is wrong with it otherwise.
    read: Box<Read>,
    /// Writes the canonical value of an older version in that version.
    write: Box<Write>,
    /// Its canonical values stand beside its files, as `NAME.vVERSION.json`.
    texts: bool,
}

/// The format of a section that holds a state. `value`: what the file of a version is read as; of the current one, what is
/// written, too. It should have every variant and optional part that the state can have.
fn state<T: SectionState + PartialEq + Debug>(name: &str, value: impl Fn(u16) -> T + 'static) -> Format {
    let oldest = T::UPGRADES.first().map_or(T::VERSION, |u| u.from);
    let value = Rc::new(value);
    let again = Rc::clone(&value);
    Format {
        name: name.into(),
        versions: oldest..=T::VERSION,
        bytes: encode(&value(T::VERSION)).expect("the canonical value is encoded"),
        read: Box::new(move |version, bytes| {
            let read: T = decode_version(version, bytes).map_err(|e| e.to_string())?;
            let expected = value(version);
            if read == expected { Ok(()) } else { Err(format!("is read as {read:?}, should be {expected:?}")) }
        }),
        write: Box::new(move |version| encode_version(version, &again(version)).map_err(|e| e.to_string())),
        texts: false,
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/images")
}

fn file(format: &Format, version: u16) -> String {
    format!("{}.v{version}.bin", format.name)
}

/// What is wrong with formats and the golden files in `dir`.
fn problems(formats: &[Format], dir: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    let mut expected = BTreeSet::from(["README.md".to_owned()]);
    for format in formats {
        for version in format.versions.clone() {
            let name = file(format, version);
            expected.insert(name.clone());
            if format.texts {
                expected.insert(name.replace(".bin", ".json"));
            }
            let Ok(golden) = fs::read(dir.join(&name)) else {
                problems.push(format!("{name} is missing; if its version is new, HIBERNET_GOLDEN=write makes it"));
                continue;
            };
            if version == *format.versions.end() && golden != format.bytes {
                problems
                    .push(format!("{name}: the format changed and its version did not; docs/snapshot-format.md says what to do"));
            }
            if let Err(e) = (format.read)(version, &golden) {
                problems.push(format!("{name}: {e}"));
            } else if version != *format.versions.end() {
                match (format.write)(version) {
                    Ok(bytes) if bytes == golden => {}
                    Ok(_) => problems.push(format!("{name}: is not written again as it was")),
                    Err(e) => problems.push(format!("{name}: cannot be written again: {e}")),
                }
            }
        }
    }
    for entry in fs::read_dir(dir).expect("golden images") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        if !expected.contains(&name) {
            problems.push(format!("{name} belongs to no format: what was released once must be read"));
        }
    }
    problems
}

#[test]
fn every_version_is_read_and_no_format_changed_without_its_version() {
    let (formats, dir) = (formats(), directory());
    if std::env::var_os("HIBERNET_GOLDEN").is_some_and(|v| v == "write") {
        for format in &formats {
            let path = dir.join(file(format, *format.versions.end()));
            if !path.exists() {
                fs::write(&path, &format.bytes).expect("written");
            }
        }
    }
    let problems = problems(&formats, &dir);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// The check itself: each thing that can go wrong is seen.
#[test]
fn what_goes_wrong_is_seen() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("golden-images");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("a directory");
    let format = |versions, bytes: &[u8]| Format {
        name: "thing".into(),
        versions,
        bytes: bytes.into(),
        read: Box::new(|_, bytes| if bytes.starts_with(b"thing") { Ok(()) } else { Err("is no thing".into()) }),
        write: Box::new(|version| if version == 1 { Ok(b"thing one".into()) } else { Err("too old".into()) }),
        texts: false,
    };
    let seen = |f: Format, words: &[&str]| {
        let problems = problems(&[f], &dir);
        assert_eq!(problems.len(), words.len(), "{problems:?}");
        for (problem, word) in problems.iter().zip(words) {
            assert!(problem.contains(word), "{problem}");
        }
    };
    seen(format(1..=1, b"thing one"), &["thing.v1.bin is missing"]);
    fs::write(dir.join("thing.v1.bin"), b"thing one").expect("written");
    seen(format(1..=1, b"thing one"), &[]);
    seen(format(1..=1, b"thing two"), &["its version did not"]);
    seen(format(1..=2, b"thing two"), &["thing.v2.bin is missing"]);
    fs::write(dir.join("thing.v2.bin"), b"thing two").expect("written");
    seen(format(1..=2, b"thing two"), &[]);
    seen(format(2..=2, b"thing two"), &["thing.v1.bin belongs to no format"]);
    fs::write(dir.join("thing.v1.bin"), b"thing one, otherwise").expect("written");
    seen(format(1..=2, b"thing two"), &["thing.v1.bin: is not written again as it was"]);
    fs::write(dir.join("thing.v0.bin"), b"thing").expect("written");
    fs::write(dir.join("thing.v1.bin"), b"thing one").expect("written");
    seen(format(0..=2, b"thing two"), &["thing.v0.bin: cannot be written again: too old"]);
    fs::remove_file(dir.join("thing.v0.bin")).expect("removed");
    fs::write(dir.join("thing.v1.bin"), b"thin").expect("written");
    seen(format(1..=2, b"thing two"), &["thing.v1.bin: is no thing"]);
}
