#!/usr/bin/env bash
# System packages that tests use: a browser and PostgreSQL. Installed only where absent and
# where this user may; without them their tests say so and are skipped (in CI they fail).
set -euo pipefail

has_browser() {
  command -v chromium >/dev/null || command -v chromium-browser >/dev/null \
    || command -v google-chrome >/dev/null
}
has_postgres() { ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null; }

packages=()
lacking=()
if ! has_browser; then
  packages+=(chromium fonts-dejavu-core)
  lacking+=("chromium: browser tests")
fi
if ! has_postgres; then
  packages+=(postgresql)
  lacking+=("postgresql: half of the history's tests")
fi
[ ${#packages[@]} -eq 0 ] && exit 0

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
echo "installing ${packages[*]} for the tests"
export DEBIAN_FRONTEND=noninteractive
# The tests start private servers; the package must not start one of its own.
$as_root mkdir -p /etc/postgresql-common
[ -e /etc/postgresql-common/createcluster.conf ] \
  || echo "create_main_cluster = false" | $as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
$as_root apt-get update -qq
$as_root apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
