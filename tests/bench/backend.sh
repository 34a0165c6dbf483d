# Backends "hibernet" (TAP link), "hibernet_packet" (veth and packet socket), "hibernet_stream" and "hibernet_vhost" (with a stand-in for QEMU), and "vm_hibernet_stream" and
# "vm_hibernet_vhost" (with QEMU) for the data-path benchmark; see README.md here.
# The contract of these functions is at the top of the benchmark's backends.sh.

HIBERNET=${HIBERNET:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/target/release/hibernet}

hibernet_attach() { # OPTIONS...
  [ -x "$HIBERNET" ] || { echo "$HIBERNET is missing: cargo build --release -p hibernet" >&2; return 77; }
  bg_host hibernet "$HIBERNET" attach --netns "/run/netns/$NS_SBX" --ifname eth0 --mtu "$MTU" --address $SBX_IP/24 \
    --gateway $GW_IP --no-ipv6 -p "$FWD_FIRST-$FWD_LAST:$FWD_FIRST" "$@"
  BACKEND_PIDS=$BG_PID
  wait_for in_ns "$NS_SBX" sh -c 'ip -4 addr show dev eth0 | grep -q inet && ip route | grep -q default' || return 1
  # The worker alone: the benchmark adds the CPU time of children itself, so naming supervisor and worker counts the worker twice.
  BACKEND_PIDS=$(cat "/proc/$BG_PID/task/$BG_PID/children")
  ns_sandbox
}
start_backend_hibernet() { hibernet_attach --link tap; }
start_backend_hibernet_packet() { hibernet_attach --link packet; }

hibernet_listens() { # OPTION: sets socket and supervisor
  [ -x "$HIBERNET" ] || { echo "$HIBERNET is missing: cargo build --release -p hibernet" >&2; return 77; }
  socket=$W/open/hibernet.sock
  mkdir -p "$W/open"
  rm -f "$socket"
  bg_host hibernet "$HIBERNET" attach "$1" "$socket" --mtu "$MTU" --address $SBX_IP/24 --gateway $GW_IP --no-ipv6 \
    -p "$FWD_FIRST-$FWD_LAST:$FWD_FIRST"
  supervisor=$BG_PID
  wait_for test -S "$socket"
}

# QEMU's stream socket and vhost-user; the benchmark's own stand-in plays QEMU, as for passt.
hibernet_vmm() { # MODE OPTION
  local socket supervisor
  hibernet_listens "$2" || return
  [ -x "$W/bin/vmmsim" ] || cc -O2 -static -o "$W/bin/vmmsim" "$BENCH/tools/vmmsim.c" || return 1
  (exec ip netns exec "$NS_SBX" "$W/bin/vmmsim" "$1" "$socket" eth0 >"$W/vmmsim.log" 2>&1) &
  local sim=$!
  wait_for grep -q ready "$W/vmmsim.log" || return 1
  BACKEND_PIDS="$(cat "/proc/$supervisor/task/$supervisor/children") $sim"
  in_ns "$NS_SBX" ip addr add $SBX_IP/24 dev eth0
  in_ns "$NS_SBX" ip link set eth0 mtu "$MTU" up
  in_ns "$NS_SBX" ip route add default via $GW_IP
  ns_sandbox
}
start_backend_hibernet_stream() { hibernet_vmm stream --qemu; }
start_backend_hibernet_vhost() { hibernet_vmm vhost --vhost-user; }

# The same with a guest in QEMU.
hibernet_vm() { # OPTION QEMU-OPTION...
  local socket supervisor option=$1
  shift
  hibernet_listens "$option" || return
  boot_vm "${@//SOCKET/$socket}" -device "$NIC=$MTU" || return
  BACKEND_PIDS="$(cat "/proc/$supervisor/task/$supervisor/children") $QEMU_PID"
}
start_backend_vm_hibernet_stream() {
  hibernet_vm --qemu -netdev "stream,id=n0,server=off,addr.type=unix,addr.path=SOCKET"
}
start_backend_vm_hibernet_vhost() {
  hibernet_vm --vhost-user -chardev "socket,id=vu,path=SOCKET" -netdev vhost-user,id=n0,chardev=vu \
    -object memory-backend-memfd,id=mem,size=768M,share=on -numa node,memdev=mem
}
