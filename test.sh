#!/bin/bash
# Runs all tests of the project, or the stages named: see ./test.sh --help
set -u
cd "$(dirname "$0")" || exit 1

STAGES="tools format lint purity licences unit model docs host fuzz"
if [ "${1:-}" = --help ]; then
  cat <<U
usage: ./test.sh [STAGE...]

Stages, in this order; all of them if none is named:
  tools     installs the programs that the host suites use, if we are root (Debian packages); else lists what is missing
  format    cargo fmt --check
  lint      cargo clippy, warnings are errors
  purity    netstack and snapshot can reach no clock, descriptor, thread or entropy, and the lints that say so fire
  licences  licences and sources of all dependencies (cargo-deny if installed), and known vulnerabilities
  unit      unit, integration and simulation tests
  model     the locks of connection tracking in every interleaving of two threads (loom); LOOM_MAX_PREEMPTIONS=3 for more of them
  docs      documentation builds without warnings, its examples run
  host      real programs in network namespaces, through the release build of hibernet; the kernel's netfilter beside ours
  fuzz      the fuzz targets build, and run over their seeds and for a few seconds on

Environment:
  HIBERNET_REQUIRE_ALL=1  whatever is skipped counts as failed, but what cannot be downloaded ("NOT TESTED")
  HIBERNET_FUZZ_SECONDS   how long each fuzz target runs (10)
  HIBERNET_NETFILTER_PACKETS  how many generated packets go through the kernel's netfilter and ours (20000)
  HIBERNET_SLEEP_SECONDS  how long a network sleeps whose peers go on sending (10)
  HIBERNET_MOVES          how often a virtual machine moves, in each suite that moves some (3)
  HIBERNET_TRANSFER_MIB   how much curl moves through three sleeps (256)
U
  exit 0
fi
[ $# -gt 0 ] && STAGES=$*

SKIPPED=$PWD/target/skipped.txt
mkdir -p target
: >"$SKIPPED"
export HIBERNET_SKIP_LOG=$SKIPPED
skip() { echo "SKIPPED: $*" | tee -a "$SKIPPED"; }

# program:package
TOOLS="busybox:busybox conntrack:conntrack curl:curl dig:bind9-dnsutils dnsmasq:dnsmasq-base dhclient:isc-dhcp-client ethtool:ethtool git:git ip:iproute2
ipset:ipset iptables-legacy:iptables iperf3:iperf3 nc:netcat-openbsd nft:nftables nginx:nginx-light nsenter:util-linux ping:iputils-ping python3:python3
qemu-system-x86_64:qemu-system-x86 redis-benchmark:redis-tools redis-server:redis-server setpriv:util-linux socat:socat ssh:openssh-client
sshd:openssh-server strace:strace tcpdump:tcpdump traceroute:traceroute unshare:util-linux xz:xz-utils g++:g++"
export PATH=$PATH:/usr/sbin:/sbin

missing_packages() {
  local t
  for t in $TOOLS; do command -v "${t%%:*}" >/dev/null || echo "${t#*:}"; done | sort -u
}

stage_tools() {
  local missing
  missing=$(missing_packages)
  [ -z "$missing" ] && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    # Daemons that come with the packages must not start.
    local policy=/usr/sbin/policy-rc.d made=
    [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy && made=1; }
    apt-get update -q >/dev/null
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing >target/apt.log 2>&1 || tail -n 5 target/apt.log
    [ -n "$made" ] && rm -f $policy
    missing=$(missing_packages)
  fi
  # shellcheck disable=SC2086
  [ -z "$missing" ] || skip "tests that need" $missing "(not installed; to install: apt-get install" $missing")"
}

stage_format() { cargo fmt --all --check; }

stage_lint() { cargo clippy --locked --workspace --all-targets -- -D warnings; }

stage_purity() { cargo test --locked -q -p hibernet-tests --test purity; }

stage_licences() {
  local database=https://github.com/rustsec/advisory-db
  if command -v cargo-deny >/dev/null; then
    cargo deny --all-features check bans licenses sources || return 1
    if timeout 20 git ls-remote -q "$database" HEAD >/dev/null 2>&1; then
      cargo deny check advisories
      return
    fi
    echo "not checked: known vulnerabilities ($database cannot be reached)"
  else
    python3 tests/checks/licences.py || return 1
    echo "not checked: known vulnerabilities (cargo-deny is not installed)"
  fi
}

have_nextest() { cargo nextest --version >/dev/null 2>&1; }

stage_unit() {
  if have_nextest; then
    cargo nextest run --locked --workspace -E 'not binary(/^(host|netfilter)_/)'
  else
    local t others=
    for t in $(cd tests/tests && ls -d -- * | grep -vE '^(host|netfilter)_'); do others+=" --test ${t%.rs}"; done
    # shellcheck disable=SC2086
    cargo test --locked --workspace --exclude hibernet-tests --lib --bins --tests &&
      cargo test --locked -p hibernet-tests --lib $others
  fi
}

# A build of its own: what threads share is loom's there. Tests run one after the other, as each wants a processor.
stage_model() {
  RUSTFLAGS="--cfg loom" CARGO_PROFILE_TEST_OPT_LEVEL=2 \
    cargo test --locked -p netstack --test conntrack_model --target-dir target/loom -- --test-threads=1
}

stage_docs() {
  RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps -q && cargo test --locked --workspace --doc -q
}

stage_host() {
  cargo build --locked --release -p hibernet || return 1
  local t suites=
  export HIBERNET_BIN=$PWD/target/release/hibernet
  if have_nextest; then
    cargo nextest run --locked -p hibernet-tests -E 'binary(/^(host|netfilter)_/)'
  else
    for t in $(cd tests/tests && ls -d -- host_* netfilter_*); do suites+=" --test ${t%.rs}"; done
    # shellcheck disable=SC2086
    cargo test --locked -p hibernet-tests $suites -- --test-threads=1
  fi
}

stage_fuzz() { fuzz/run.sh --all "${HIBERNET_FUZZ_SECONDS:-10}"; }

FAILED=
for stage in $STAGES; do
  declare -F "stage_$stage" >/dev/null || { echo "no such stage: $stage (try --help)" >&2; exit 2; }
  echo "== $stage"
  begin=$SECONDS
  "stage_$stage" || FAILED+=" $stage"
  echo "-- $stage: $((SECONDS - begin)) s"
done

echo
if [ -s "$SKIPPED" ]; then
  sort -u "$SKIPPED"
  # What needs the network beyond this machine ("NOT TESTED") does not count.
  [ "${HIBERNET_REQUIRE_ALL:-0}" = 1 ] && grep -q ^SKIPPED "$SKIPPED" && FAILED+=" (tests were skipped that must run here)"
fi
if [ -n "$FAILED" ]; then
  echo "FAILED:$FAILED"
  exit 1
fi
echo "all passed: $STAGES"
