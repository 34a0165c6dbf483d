#!/bin/bash
# What rules cost: throughput of the main job (one TCP stream, iperf3, both ways) with connection tracking and 100 rules that every packet
# passes, against none. Runs alternate, so that both see the same machine; medians of both and their ratio are printed.
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

# Gbit/s of one run: options of hibernet, then those of iperf3 after `--`.
run() {
  local options=()
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  "$HIBERNET" run --map-host-loopback 10.0.2.100 --no-ipv6 "${options[@]}" -- \
    iperf3 -c 10.0.2.100 -t "$SECONDS_EACH" -J "$@" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["end"]["sum_received"]["bits_per_second"] / 1e9)'
}

for way in "guest to host" "host to guest"; do
  extra=()
  [ "$way" = "host to guest" ] && extra=(-R)
  : >"$DIR/without"
  : >"$DIR/with"
  for _ in $(seq "$PAIRS"); do
    run -- "${extra[@]}" >>"$DIR/without"
    run --rules "$DIR/rules" -- "${extra[@]}" >>"$DIR/with"
  done
  python3 - "$way" "$DIR/without" "$DIR/with" <<'P'
import statistics
import sys

way, a, b = sys.argv[1], *([float(x) for x in open(f)] for f in sys.argv[2:])
ratio = statistics.median(y / x for x, y in zip(a, b))
print(f"{way}: without rules {statistics.median(a):.2f} Gbit/s, with 100 rules {statistics.median(b):.2f} Gbit/s, "
      f"median of the pairs' ratios {ratio:.3f} ({len(a)} pairs)")
P
done
