#!/bin/bash
# One worker beside two: throughput of several TCP streams (iperf3, both ways) between a sandbox and its host, and the worker's CPU time for it. Runs
# alternate, so that both see the same machine; medians of both and of the pairs' ratios are printed. Sender, receiver and the kernel need processors, too:
# with two of them a second worker can gain little here.
#
#   tests/bench/workers.sh [PAIRS] [SECONDS] [STREAMS]     default: 5 pairs of 3 s for each way, 4 streams
#
# Needs iperf3, python3 and the release build. Runs in a network namespace of its own, as root or not.
set -eu
PAIRS=${1:-5}
SECONDS_EACH=${2:-3}
STREAMS=${3:-4}
HIBERNET=${HIBERNET:-$(cd "$(dirname "$0")/../.." && pwd)/target/release/hibernet}

if [ -z "${HIBERNET_BENCH_INSIDE:-}" ]; then
  [ -x "$HIBERNET" ] || { echo "$HIBERNET is missing: cargo build --release -p hibernet" >&2; exit 77; }
  map=
  [ "$(id -u)" = 0 ] || map=-Ur
  # shellcheck disable=SC2086
  HIBERNET_BENCH_INSIDE=1 HIBERNET=$HIBERNET exec unshare $map -n -m -p --fork --kill-child --mount-proc "$0" "$PAIRS" "$SECONDS_EACH" "$STREAMS"
fi

mount -t tmpfs -o mode=755 run /run
ip link set lo up
# An address of the host's that is not the gateway's: what is for that the first worker does.
ip addr add 192.0.2.1/32 dev lo
iperf3 -s -B 192.0.2.1 >/dev/null 2>&1 &
for _ in $(seq 100); do
  grep -q ':1451 .* 0A ' /proc/net/tcp && break
  sleep 0.05
done

for n in 1 2; do
  "$HIBERNET" run --name "w$n" --workers "$n" --detach --allow-host 192.0.2.1 --no-ipv6 -- sleep 100000 >/dev/null
done

python3 - "$HIBERNET" "$PAIRS" "$SECONDS_EACH" "$STREAMS" <<'P'
import json
import os
import statistics
import subprocess
import sys

hibernet, pairs, seconds, streams = sys.argv[1:]


def worker(name):
    listed = json.loads(subprocess.run([hibernet, "list", "--json"], capture_output=True, check=True).stdout)
    return next(s["worker"] for s in listed if s["name"] == name)


def cpu(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(name, *options):
    pid = worker(name)
    before = cpu(pid)
    argv = [hibernet, "exec", name, "--", "iperf3", "-J", "-c", "192.0.2.1", "-t", seconds, "-P", streams, *options]
    out = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    got = out["end"]["sum_received"]
    return got["bits_per_second"] / 1e9, (cpu(pid) - before) / (got["bytes"] / 1e9)


for way, options in [("out", []), ("in", ["-R"])]:
    runs = {"w1": [], "w2": []}
    for _ in range(int(pairs)):
        for name in runs:
            runs[name].append(run(name, *options))
    rate = {n: statistics.median(r[0] for r in all) for n, all in runs.items()}
    cost = {n: statistics.median(r[1] for r in all) for n, all in runs.items()}
    ratio = statistics.median(b[0] / a[0] for a, b in zip(runs["w1"], runs["w2"]))
    each = json.loads(subprocess.run([hibernet, "stats", "w2", "--json"], capture_output=True, check=True).stdout)
    print(f"{way}: one worker {rate['w1']:.2f} Gbit/s, {cost['w1']:.2f} s/GB; two {rate['w2']:.2f} Gbit/s, {cost['w2']:.2f} s/GB; "
          f"ratio of pairs {ratio:.2f}; frames handed over {each['stack']['handed_over']} of {each['stack']['rx_frames']}, lost {each['drops']['worker_busy']}")
P
