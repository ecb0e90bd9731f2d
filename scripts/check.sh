#!/usr/bin/env bash
# Everything a change must pass beside the tests. Runs all steps, then names what failed. What
# runs tests takes about as long as all else, and runs beside it.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
failed="$(mktemp)"
trap 'rm -f "$failed"' EXIT

step() {
  local name="$1" out
  shift
  if out="$("$@" 2>&1)"; then
    printf '  ok    %s\n' "$name"
  else
    printf '  FAIL  %s\n%s\n' "$name" "$(tail -n 40 <<<"$out" | sed 's/^/        /')"
    echo "$name" >>"$failed"
  fi
}

wheel() {
  local folder
  folder="$(mktemp -d)"
  $bin/python -m pip wheel -q --no-deps -w "$folder" . && ls "$folder"/forebay-*.whl
  local status=$?
  rm -rf "$folder"
  return $status
}

{
  step "core: 100 % branch coverage" $bin/python -m pytest tests/core tests/dialects -q \
    --cov=forebay.core --cov-branch --cov-report=term-missing:skip-covered --cov-fail-under=100
  # Leaves them compiled, too: the processes of `make test` would each do it for themselves.
  step "every test can be collected" $bin/python -m pytest --collect-only -q
} &
step "format (ruff format)" $bin/ruff format --check .
step "lint (ruff)" $bin/ruff check .
step "types (mypy --strict)" $bin/mypy
step "import rules (import-linter)" $bin/lint-imports
step "lengths, words, docs" $bin/python scripts/check_tree.py
step "settings page is up to date" $bin/forebay config docs --check
step "cli page is up to date" $bin/python scripts/cli_reference.py --check docs/reference/cli.md
step "wheel builds" wheel

wait
if [ -s "$failed" ]; then
  printf 'check failed: %s\n' "$(paste -sd, "$failed")" >&2
  exit 1
fi
echo "all checks passed"
