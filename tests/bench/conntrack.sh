#!/bin/bash
# Saving and restoring tracked connections: ours beside the kernel's `conntrack -L -o save` and `conntrack -R` of as many, in one run.
#
#   tests/bench/conntrack.sh [CONNECTIONS]     default: 200000
#
# Needs conntrack, python3 and root. The kernel's entries stand in a network namespace of their own, where no more fit than
# net.netfilter.nf_conntrack_max allows the host; that is not changed.
set -eu
N=${1:-200000}
cd "$(dirname "$0")/../.."

if [ -n "${HIBERNET_BENCH_INSIDE:-}" ]; then
  exec python3 - "$N" "$HIBERNET_BENCH_INSIDE" <<'P'
import subprocess
import sys
import time

n, directory = int(sys.argv[1]), sys.argv[2]
made, saved = f"{directory}/made", f"{directory}/saved"
with open(made, "w") as f:
    for i in range(n):
        client, port = f"10.{i >> 23 & 255}.{i >> 15 & 255}.1", (i & 0x7fff) + 1024
        f.write(
            f"-A -t 100000 -u SEEN_REPLY,ASSURED -s {client} -d 192.0.2.1 -r 192.0.2.1 -q {client} -p tcp"
            f" --sport {port} --dport 80 --reply-port-src 80 --reply-port-dst {port} --state ESTABLISHED\n"
        )


def run(*command, **more):
    before = time.monotonic()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, **more)
    return time.monotonic() - before


def entries():
    return int(subprocess.check_output(["conntrack", "-C"]))


run("conntrack", "-R", made)
if entries() != n:
    sys.exit(f"the kernel took {entries()} connections of {n}: nf_conntrack_max?")
for _ in range(3):
    with open(saved, "w") as f:
        save = run("conntrack", "-L", "-o", "save", stdout=f)
    run("conntrack", "-F")
    restore = run("conntrack", "-R", saved)
    assert entries() == n, entries()
    print(f"kernel: {n} connections, conntrack -L -o save {save * 1e3:.0f} ms, conntrack -R {restore * 1e3:.0f} ms")
P
fi

most=$(cat /proc/sys/net/netfilter/nf_conntrack_max 2>/dev/null || echo 0)
[ "$(id -u)" = 0 ] && command -v conntrack >/dev/null || { echo "needs root and conntrack" >&2; exit 77; }
[ "$N" -le "$most" ] || { echo "nf_conntrack_max is $most: no room for $N connections" >&2; exit 77; }
DIR=$(mktemp -d)
trap 'rm -rf "$DIR"' EXIT
cargo bench -q -p netstack --bench image -- "$N" save
HIBERNET_BENCH_INSIDE=$DIR unshare -n "$0" "$N"
