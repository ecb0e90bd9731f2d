#!/usr/bin/env bash
# Everything a change must pass beside the tests. Runs all steps, then names what failed.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
failed=()

step() {
  local name="$1" out
  shift
  if out="$("$@" 2>&1)"; then
    printf '  ok    %s\n' "$name"
  else
    printf '  FAIL  %s\n%s\n' "$name" "$(tail -n 40 <<<"$out" | sed 's/^/        /')"
    failed+=("$name")
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

step "format (ruff format)" $bin/ruff format --check .
step "lint (ruff)" $bin/ruff check .
step "types (mypy --strict)" $bin/mypy
step "import rules (import-linter)" $bin/lint-imports
step "lengths, words, docs" $bin/python scripts/check_tree.py
step "settings page is up to date" $bin/forebay config docs --check
step "cli page is up to date" $bin/python scripts/cli_reference.py --check docs/reference/cli.md
step "core: 100 % branch coverage" $bin/python -m pytest tests/core tests/dialects -q \
  --cov=forebay.core --cov-branch --cov-report=term-missing:skip-covered --cov-fail-under=100
step "wheel builds" wheel

if [ ${#failed[@]} -gt 0 ]; then
  printf 'check failed: %s\n' "$(IFS=,; echo "${failed[*]}")" >&2
  exit 1
fi
echo "all checks passed"
