#!/bin/bash
# Unpacks a QEMU that moves a back end's state along (10 or newer) in DIR, unless it is there: fetch-qemu.sh DIR. Of a newer Debian, with all libraries that it
# needs, downloaded and not installed. DIR/qemu runs it. Exit status 3: it cannot be downloaded.
set -euo pipefail
dir=$1
suite=trixie
mkdir -p "$dir"
cd "$dir"
exec 9>lock
flock 9
[ -e complete ] && exit 0
mkdir -p apt/lists/partial apt/cache/archives/partial
# The mirror that this machine uses already.
mirror=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | sed -n 's/^URIs: *//p' | grep -m1 '/debian/\?$') ||
  mirror=$(grep -hEo 'https?://[^ ]*/debian/? ' /etc/apt/sources.list | head -n 1) || true
mirror=${mirror:-http://deb.debian.org/debian}
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] $mirror $suite main" >apt/sources.list
: >apt/status # nothing is installed, so that everything comes
apt() {
  apt-get -q -o "Dir::Etc::sourcelist=$PWD/apt/sources.list" -o Dir::Etc::sourceparts=- -o Dir::Etc::preferencesparts=- -o "Dir::State=$PWD/apt" \
    -o "Dir::State::lists=$PWD/apt/lists" -o "Dir::Cache=$PWD/apt/cache" -o "Dir::State::status=$PWD/apt/status" \
    -o APT::Sandbox::User= -o Debug::NoLocking=1 -o Acquire::Retries=2 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 "$@" >&2
}
offline() { echo "$1 cannot be fetched from $mirror" >&2; exit 3; }
apt update || offline "the index of $suite"
# What cannot be had of the index is a warning only.
ls apt/lists/*Packages* >/dev/null 2>&1 || offline "the index of $suite"
apt install --download-only -y --no-install-recommends qemu-system-x86 || offline "a package"
rm -rf root
for package in apt/cache/archives/*.deb; do dpkg-deb -x "$package" root; done
cat >qemu.new <<'U'
#!/bin/bash
root=$(cd "$(dirname "$0")" && pwd)/root
lib=$root/usr/lib/$(uname -m)-linux-gnu
loader=$(echo "$root"/lib64/ld-linux-*.so.* "$root"/usr/lib64/ld-linux-*.so.* "$lib"/ld-linux-*.so.* | tr ' ' '\n' | while read -r l; do [ -e "$l" ] && echo "$l" && break; done)
exec "$loader" --library-path "$lib:$root/lib/$(uname -m)-linux-gnu" "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/seabios" -L "$root/usr/share/qemu" \
  -L "$root/usr/lib/ipxe/qemu" "$@"
U
chmod 755 qemu.new
./qemu.new --version >&2
mv qemu.new qemu
rm -rf apt
touch complete
