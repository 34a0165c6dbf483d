#!/bin/bash
# Builds a guest for QEMU in DIR, unless it is there: build.sh DIR. A packaged Debian kernel (DIR/vmlinuz), and an initial file system with busybox, curl,
# ethtool and socat (DIR/initrd). The kernel's package is downloaded and unpacked, not installed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$1
mkdir -p "$dir"
cd "$dir"
exec 9>lock
flock 9
if [ ! -e vmlinuz ]; then
  arch=$(dpkg --print-architecture)
  kernel() { apt-cache depends "linux-image-cloud-$arch" 2>/dev/null | sed -n 's/^ *Depends: *\(linux-image-[0-9].*\)/\1/p' | head -n 1; }
  package=$(kernel)
  [ -n "$package" ] || { apt-get update -q >&2 && package=$(kernel); } || true
  [ -n "$package" ] || { echo "no packaged cloud kernel is known to apt (apt-get update)" >&2; exit 1; }
  rm -rf kernel
  apt-get download -q "$package" >&2
  dpkg-deb -x "$package"_*.deb kernel
  rm "$package"_*.deb
  mv kernel/boot/vmlinuz-* vmlinuz
fi
stamp=$(cat "$here"/* | sha256sum)
[ -e initrd ] && [ "$(cat stamp 2>/dev/null)" = "$stamp" ] && exit 0
rm -rf root
mkdir -p root/{bin,lib,proc,sys,dev}
program() { # with the libraries that it needs, where it looks for them
  cp -L "$(command -v "$1")" root/bin/
  ldd "$(command -v "$1")" | grep -o '/[^ ]*' | while read -r lib; do
    mkdir -p "root$(dirname "$lib")"
    cp -L "$lib" "root$lib"
  done
}
program busybox
program curl
# For what is asked of several queues, and for datagrams; who needs them looks for them.
command -v ethtool >/dev/null && program ethtool
command -v socat >/dev/null && program socat
for module in failover net_failover virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_net; do
  file=$(find kernel/lib/modules -name "$module.ko*")
  case $file in
    *.xz) xz -dc "$file" >"root/lib/$module.ko" ;;
    *.ko) cp "$file" root/lib/ ;;
  esac
done
cp "$here/init" root/init
cp "$here/dhcp" root/dhcp
chmod 755 root/init root/dhcp
(cd root && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >initrd.new
mv initrd.new initrd
rm -rf root
echo "$stamp" >stamp
