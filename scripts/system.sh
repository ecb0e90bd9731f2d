#!/usr/bin/env bash
# System programs that tests use. Installed only where absent and where this user may; without
# them their tests say so and are skipped (in CI they fail). No service is started: tests run
# private servers of their own. What is only a checker is unpacked into a cache, not installed.
set -euo pipefail
tools="${XDG_CACHE_HOME:-$HOME/.cache}/forebay/tools"

has() { for name in "$@"; do PATH="$PATH:/usr/sbin:/sbin" command -v "$name" >/dev/null && return; done; return 1; }
has_postgres() { ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || has initdb; }

packages=()
lacking=()
need() { # what it is for, then packages
  lacking+=("$1")
  shift
  packages+=("$@")
}
has chromium chromium-browser google-chrome || need "chromium: browser tests" chromium fonts-dejavu-core
has_postgres || need "postgresql: half of the history's tests" postgresql
has redis-server || need "redis-server: half of the broker's tests" redis-server
has nginx || need "nginx: tests behind a proxy" nginx-light
has bwrap || need "bubblewrap: confinement of kernels" bubblewrap
has ip || need "iproute2: tests across network namespaces" iproute2
has iptables nft || need "iptables: lossy networks" iptables
has systemd-analyze || need "systemd-analyze: checks of unit files" systemd
unpack=()
for pair in promtool:prometheus caddy:caddy; do
  [ -x "$tools/usr/bin/${pair%:*}" ] || has "${pair%:*}" || unpack+=("${pair#*:}")
done
[ ${#packages[@]} -eq 0 ] && [ ${#unpack[@]} -eq 0 ] && exit 0

skip() {
  printf 'no %s are skipped\n' "${lacking[@]}"
  echo "($1)"
  exit 0
}
as_root=
if [ "$(id -u)" -ne 0 ]; then
  sudo -n true 2>/dev/null || skip "no right to install them"
  as_root=sudo
fi
command -v apt-get >/dev/null || skip "no apt-get to install them with"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq

if [ ${#packages[@]} -gt 0 ]; then
  echo "installing ${packages[*]} for the tests"
  # The packages must not start servers of their own: neither a cluster nor a service.
  $as_root mkdir -p /etc/postgresql-common
  [ -e /etc/postgresql-common/createcluster.conf ] \
    || echo "create_main_cluster = false" | $as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee $policy >/dev/null
    $as_root chmod +x $policy
    trap '$as_root rm -f $policy' EXIT
  fi
  $as_root apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

if [ ${#unpack[@]} -gt 0 ]; then
  echo "unpacking ${unpack[*]} for the tests"
  mkdir -p "$tools"
  folder="$(mktemp -d)"
  chmod 755 "$folder"
  (cd "$folder" && apt-get download -qq "${unpack[@]}" >/dev/null && for file in *.deb; do
    dpkg-deb -x "$file" "$tools"
  done)
  rm -rf "$folder"
fi
