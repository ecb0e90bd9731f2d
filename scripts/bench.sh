#!/usr/bin/env bash
# Every benchmark of benchmarks/README.md, or those named (make bench ARGS="voice_floor").
# Each prints its figure beside its peer or limit and fails when it misses it.
set -uo pipefail
cd "$(dirname "$0")/.."
picked=("$@")
if [ ${#picked[@]} -eq 0 ]; then
  mapfile -t picked < <(sed -nE 's/^\| `([a-z_]+)\.py` .*/\1/p' benchmarks/README.md)
fi
failed=()
for name in "${picked[@]}"; do
  echo "== $name"
  .venv/bin/python -m "benchmarks.$name" || failed+=("$name")
done
if [ ${#failed[@]} -gt 0 ]; then
  printf 'missed: %s\n' "${failed[*]}" >&2
  exit 1
fi
