#!/bin/bash
# What rules cost: throughput of the main job (one TCP stream, iperf3, both ways) with connection tracking and 100 rules that every packet
# passes, against none, and the worker's CPU time for it. Runs alternate, so that both see the same machine; medians of both and of the
# pairs' ratios are printed. On a busy machine believe the CPU time.
#
#   tests/bench/rules.sh [PAIRS] [SECONDS]     default: 7 pairs of 3 s for each way
#
# Needs iperf3, python3 and the release build. Runs in a network namespace of its own, as root or not.
set -eu
PAIRS=${1:-7}
SECONDS_EACH=${2:-3}
HIBERNET=${HIBERNET:-$(cd "$(dirname "$0")/../.." && pwd)/target/release/hibernet}

if [ -z "${HIBERNET_BENCH_INSIDE:-}" ]; then
  [ -x "$HIBERNET" ] || { echo "$HIBERNET is missing: cargo build --release -p hibernet" >&2; exit 77; }
  map=
  [ "$(id -u)" = 0 ] || map=-Ur
  # shellcheck disable=SC2086
  HIBERNET_BENCH_INSIDE=1 HIBERNET=$HIBERNET exec unshare $map -n -m -p --fork --kill-child --mount-proc "$0" "$PAIRS" "$SECONDS_EACH"
fi

mount -t tmpfs -o mode=755 run /run
ip link set lo up
DIR=$(mktemp -d)
trap 'rm -rf "$DIR"' EXIT
{
  echo '*filter'
  echo ':FORWARD DROP [0:0]'
  for i in $(seq 98); do echo "-A FORWARD -s 10.0.2.0/24 -p tcp -m tcp --dport $((20000 + i)) -j DROP"; done
  echo '-A FORWARD -m conntrack --ctstate INVALID -j DROP'
  echo '-A FORWARD -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT'
  echo COMMIT
} >"$DIR/rules"

iperf3 -s -B 127.0.0.1 >/dev/null 2>&1 &
for _ in $(seq 100); do
  grep -q ':1451 .* 0A ' /proc/net/tcp && break
  sleep 0.05
done

# Both sandboxes stay; `rules` and `none` take turns.
start() { # NAME OPTIONS...
  local name=$1
  shift
  "$HIBERNET" run --name "$name" --detach --map-host-loopback 10.0.2.100 --no-ipv6 "$@" -- sleep 100000 >/dev/null
}
start none
start rules --rules "$DIR/rules"

# One run: Gbit/s, and the worker's CPU seconds for a gigabyte.
run() { # NAME, options of iperf3
  local name=$1
  shift
  python3 - "$HIBERNET" "$name" "$SECONDS_EACH" "$@" <<'P'
import json
import os
import subprocess
import sys

hibernet, name, seconds, *options = sys.argv[1:]
listed = json.loads(subprocess.check_output([hibernet, "list", "--json"]))
worker = next(s["worker"] for s in listed if s["name"] == name)


def cpu():
    with open(f"/proc/{worker}/stat") as f:
        fields = f.read().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


before = cpu()
out = subprocess.check_output([hibernet, "exec", name, "--", "iperf3", "-c", "10.0.2.100", "-t", seconds, "-J", *options])
end = json.loads(out)["end"]["sum_received"]
print(end["bits_per_second"] / 1e9, (cpu() - before) / (end["bytes"] / 1e9))
P
}

for way in "guest to host" "host to guest"; do
  extra=()
  [ "$way" = "host to guest" ] && extra=(-R)
  : >"$DIR/none"
  : >"$DIR/with"
  for _ in $(seq "$PAIRS"); do
    run none "${extra[@]}" >>"$DIR/none"
    run rules "${extra[@]}" >>"$DIR/with"
  done
  python3 - "$way" "$DIR/none" "$DIR/with" <<'P'
import statistics
import sys

way, without, with_rules = sys.argv[1], *([[float(x) for x in line.split()] for line in open(f)] for f in sys.argv[2:])
for what, unit, i in ("throughput", "Gbit/s", 0), ("CPU of the worker", "s/GB", 1):
    a, b = [x[i] for x in without], [x[i] for x in with_rules]
    ratio = statistics.median(y / x for x, y in zip(a, b))
    print(f"{way}, {what}: none {statistics.median(a):.3f} {unit}, 100 rules {statistics.median(b):.3f} {unit}, "
          f"median of the pairs' ratios {ratio:.3f} ({len(a)} pairs)")
P
done
