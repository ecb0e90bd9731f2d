#!/usr/bin/env bash
# Every benchmark of benchmarks/, or those named. Each prints its figure beside its peer or
# limit and exits non-zero when it misses it.
set -uo pipefail
cd "$(dirname "$0")/.."
mkdir -p benchmarks/results
picked=("$@")
[ ${#picked[@]} -gt 0 ] || picked=(benchmarks/bench_*.py)
failed=()
for file in "${picked[@]}"; do
  echo "== $file"
  .venv/bin/python "$file" || failed+=("$file")
done
if [ ${#failed[@]} -gt 0 ]; then
  printf 'missed: %s\n' "${failed[@]}" >&2
  exit 1
fi
