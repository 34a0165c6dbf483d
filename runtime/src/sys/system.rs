//! What kind of system this is.

/// Major and minor version of the kernel; `(0, 0)` if it does not say so in the usual form.
pub fn kernel_version() -> (u32, u32) {
    // SAFETY: plain old data for which zero is a valid value.
    let mut name: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes NUL-terminated strings within the structure.
    if unsafe { libc::uname(&mut name) } != 0 {
        return (0, 0);
    }
    let release: String = name.release.iter().take_while(|&&c| c != 0).map(|&c| char::from(c as u8)).collect();
    parse(&release).unwrap_or((0, 0))
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(parse("6.18.44-fc-v769"), Some((6, 18)));
        assert_eq!(parse("5.4-rc1"), Some((5, 4)));
        assert_eq!(parse("6"), None);
        assert_eq!(parse("x.y"), None);
        assert!(kernel_version() > (3, 0));
    }
}
