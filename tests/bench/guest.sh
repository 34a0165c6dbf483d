#!/bin/bash
# What a network costs a real guest: CPU seconds per GiB of the backend's process, and of QEMU beside the guest's own. As root:
#   BENCH=DIR PEERS_NEW=DIR tests/bench/guest.sh [REPEATS] [SECONDS]
# BENCH is the data-path benchmark, PEERS_NEW where it has unpacked passt, GUEST where tests/guest/build.sh has unpacked a kernel (target/guest). Without
# VM_ACCEL=kvm the guest is emulated: its speed means little then, but what the backend spends on a GiB does. TCP_CC is the congestion control (reno).
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repeats=${1:-3} seconds=${2:-5}
BENCH=${BENCH:?the directory of the data-path benchmark}
GUEST=${GUEST:-$here/../../target/guest}
VM_ACCEL=${VM_ACCEL:-tcg} TCP_CC=${TCP_CC:-reno}
backends=${BACKENDS:-vm_hibernet_stream vm_hibernet_vhost vm_passt_new vm_passt_vhost vm_user}
mtus=${MTUS:-1500 65520}
. "$BENCH/lib/net.sh"
. "$BENCH/lib/vm.sh"
. "$BENCH/backends.sh"
. "$here/backend.sh"
# QEMU before 8 crashes without `vectors=0` where it emulates a guest with vhost-user.
vhost_user_nic="virtio-net-pci,netdev=n0,mac=52:54:00:12:34:56,vectors=0,host_mtu"
plain_nic=$NIC

W=$(mktemp -d)
mkdir -p "$W/bin"
cc -O2 -static -o "$W/bin/nb" "$BENCH/tools/nb.c" || exit 1

# A guest of our own, which does what the benchmark's does: its commands come over a virtio port.
"$here/../guest/build.sh" "$GUEST" || exit 1
cp "$GUEST/vmlinuz" "$W/vmlinux"
root=$W/root
mkdir -p "$root"/{bin,lib,proc,sys,dev,tmp,etc}
for program in busybox iperf3; do
  cp -L "$(command -v $program)" "$root/bin/"
  ldd "$(command -v $program)" | grep -o '/[^ ]*' | while read -r lib; do
    mkdir -p "$root$(dirname "$lib")"
    cp -L "$lib" "$root$lib"
  done
done
modules="failover net_failover virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_net virtio_console"
for module in $modules; do
  file=$(find "$GUEST/kernel/lib/modules" -name "$module.ko*")
  case $file in *.xz) xz -dc "$file" >"$root/lib/$module.ko" ;; *.ko) cp "$file" "$root/lib/" ;; esac
done
echo 'root:x:0:0::/:/bin/sh' >"$root/etc/passwd"
cat >"$root/init" <<I
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in $modules; do [ -e /lib/\$m.ko ] && insmod /lib/\$m.ko; done
for a in \$(cat /proc/cmdline); do case \$a in hb.*) export "hb_\${a#hb.}";; esac; done
ip link set lo up
ip link set eth0 mtu "\$hb_mtu" up
ip addr add "\$hb_ip/24" dev eth0
ip route add default via "\$hb_gw"
($TUNE)
for P in /dev/vport*p1; do exec 3<>"\$P"; done
while :; do
  if read -r mark line <&3; then
    sh -c "\$line" </dev/null >/tmp/out 2>&1
    rc=\$?
    { echo "\$mark+"; cat /tmp/out; echo; echo "\$mark \$rc"; } >&3
  else
    usleep 50000
  fi
done
I
chmod 755 "$root/init"
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >"$W/initrd"

QEMU_PID=
clean() {
  net_down
  [ -n "$QEMU_PID" ] && kill -9 "$QEMU_PID" 2>/dev/null
  QEMU_PID=
}
trap 'clean; rm -rf "$W"' EXIT
trap 'exit 130' INT TERM

ticks=$(getconf CLK_TCK)
cpu() { # WHICH PID...: ticks of the threads of processes: `vcpu`, `other`, or `all`
  local which=$1 pid task stat name sum=0
  shift
  for pid; do
    for task in /proc/"$pid"/task/*; do
      stat=$(<"$task/stat") || continue
      name=${stat#*(} stat=${stat##*) }
      case $which:$name in vcpu:"CPU "* | all:*) ;; other:"CPU "*) continue ;; other:*) ;; *) continue ;; esac
      set -- $stat
      sum=$((sum + ${12} + ${13}))
    done 2>/dev/null
  done
  echo $sum
}

run() { # BACKEND MTU DIRECTION: Gbit/s, and CPU seconds per GiB of backend, of QEMU's own threads, of the guest
  local own= pid before after bytes reverse= rate
  [ "$3" = in ] && reverse=-R
  for pid in $BACKEND_PIDS; do [ "$pid" = "$QEMU_PID" ] || own+=" $pid"; done
  before=($(cpu all $own) $(cpu other "$QEMU_PID") $(cpu vcpu "$QEMU_PID"))
  bytes=$(sbx iperf3 -c $REMOTE_IP -p $IPERF_PORT -t "$seconds" $reverse -J | python3 -c '
import json, sys
end = json.load(sys.stdin)["end"]["sum_received"]
print(end["bytes"], end["bits_per_second"] / 1e9)') || { echo "$1 $2 $3: iperf3 failed" >&2; return 1; }
  after=($(cpu all $own) $(cpu other "$QEMU_PID") $(cpu vcpu "$QEMU_PID"))
  read -r bytes rate <<<"$bytes"
  python3 -c '
import sys
n, rate, hz, *t = map(float, sys.argv[1:])
print("%.3f" % rate, *("%.3f" % ((t[i + 3] - t[i]) / hz / (n / 2**30)) for i in range(3)))' "$bytes" "$rate" "$ticks" "${before[@]}" "${after[@]}"
}

median() { # lines of columns: the median of each
  python3 -c '
import statistics, sys
print(*("%.2f" % statistics.median(map(float, c)) for c in zip(*(l.split() for l in sys.stdin))))'
}

printf '%-20s %6s %-4s %9s %14s %14s %14s\n' backend MTU way Gbit/s 'backend s/GiB' 'QEMU s/GiB' 'guest s/GiB'
for backend in $backends; do
  for MTU in $mtus; do
    NIC=$plain_nic
    case $backend in *vhost*) NIC=$vhost_user_nic ;; esac
    BACKEND_PIDS=
    net_up
    in_remote iperf3 -s -p $IPERF_PORT -D
    "start_backend_$backend" >/dev/null
    rc=$?
    # That they are killed in the end is no news.
    disown -a
    if [ $rc != 0 ]; then
      echo "$backend at MTU $MTU: not measured (status $rc)" >&2
      clean
      continue
    fi
    for way in out in; do
      for _ in $(seq "$repeats"); do run "$backend" "$MTU" $way; done >"$W/runs" || continue
      read -r rate own qemu guest < <(median <"$W/runs")
      # Of QEMU's own network there is no process: it is within QEMU.
      [ "$backend" = vm_user ] && own=-
      printf '%-20s %6s %-4s %9s %14s %14s %14s\n' "$backend" "$MTU" $way "$rate" "$own" "$qemu" "$guest"
    done
    clean
  done
done
