#!/usr/bin/env bash
# System packages that tests use: a browser. Installed only where absent and where this user
# may; without it the browser tests say so and are skipped.
set -euo pipefail

if command -v chromium >/dev/null || command -v chromium-browser >/dev/null \
  || command -v google-chrome >/dev/null; then
  exit 0
fi
as_root=
if [ "$(id -u)" -ne 0 ]; then
  if ! sudo -n true 2>/dev/null; then
    echo "no chromium and no right to install it: browser tests are skipped"
    exit 0
  fi
  as_root=sudo
fi
if ! command -v apt-get >/dev/null; then
  echo "no chromium and no apt-get: browser tests are skipped"
  exit 0
fi
echo "installing chromium for the browser tests"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
$as_root apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
