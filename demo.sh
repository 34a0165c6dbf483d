#!/bin/bash
# The main job, offline: builds hibernet, serves a file from a sandbox behind a published port, fetches it.
set -eu
cd "$(dirname "$0")"
PORT=${PORT:-18080}
cargo build --locked --release -p hibernet
work=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null || true; wait; rm -rf "$work"' EXIT
head -c 8388608 /dev/urandom >"$work/file"
cd "$work"
"$OLDPWD/target/release/hibernet" run -p "127.0.0.1:$PORT:8000" -- python3 -m http.server 8000 >server.log 2>&1 &
pid=$!
for _ in $(seq 100); do
  curl -sf -o fetched "http://127.0.0.1:$PORT/file" && break
  kill -0 "$pid" 2>/dev/null || { cat server.log; exit 1; }
  sleep 0.1
done
cmp file fetched
cat server.log
echo "fetched 8 MiB from the sandbox through port $PORT: the same bytes"
