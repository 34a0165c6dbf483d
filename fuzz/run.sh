#!/bin/bash
# Builds and runs fuzz targets with the stable toolchain; cargo-fuzz (nightly) works in this directory too.
#   fuzz/run.sh TARGET|--all SECONDS [libFuzzer options]
#   fuzz/run.sh TARGET FILE          replays one input
set -eu
cd "$(dirname "$0")"
[ $# -ge 2 ] || { sed -n '3,4s/^# *//p' "$0" >&2; exit 2; }
what=$1 arg=$2
shift 2
ALL="frames rules image conntrack_image vhost_user"
[ "$what" = --all ] && targets=$ALL || targets=$what

# What cargo-fuzz passes, without the address sanitizer, which needs nightly: there is no unsafe code to be watched.
host=$(rustc -vV | sed -n 's/^host: //p')
sancov="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
RUSTFLAGS="--cfg fuzzing $(echo $sancov)" cargo build --locked --release --target "$host"
bin=target/$host/release

for t in $targets; do
  if [ -f "$arg" ]; then
    exec "$bin/$t" "$arg"
  fi
  mkdir -p "corpus/$t" "artifacts/$t"
  HIBERNET_FUZZ_SEEDS=corpus/$t "$bin/$t"
  # Every seed must pass by itself, then they are changed.
  "$bin/$t" -runs=0 "corpus/$t" >"artifacts/$t.log" 2>&1 || { tail -n 60 "artifacts/$t.log"; exit 1; }
  "$bin/$t" -max_total_time="$arg" -timeout=10 -rss_limit_mb=1024 -max_len=4096 -artifact_prefix="artifacts/$t/" \
    "$@" "corpus/$t" >"artifacts/$t.log" 2>&1 || { tail -n 60 "artifacts/$t.log"; exit 1; }
  grep -E 'DONE|stat::|Done' "artifacts/$t.log" | tail -n 2
done
