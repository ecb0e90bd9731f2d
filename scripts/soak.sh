#!/usr/bin/env bash
# A long mixed run against a server of its own: drops, cancels and stalled readers, until
# SOAK_MINUTES (default 30) have passed or a check of `forebay bench tts` fails. SOAK_SECONDS
# is the length of a round (default 60).
set -euo pipefail
cd "$(dirname "$0")/.."
minutes="${SOAK_MINUTES:-30}"
folder="$(mktemp -d)"
log="$folder/serve.log"
.venv/bin/forebay serve --port 0 --data-dir "$folder/data" \
  --engine text=synthetic --engine speech=synthetic:rtf=0.1,latency_ms=10,slots=16 \
  --workers recognition=0 \
  >"$log" 2>&1 &
server=$!
trap 'kill -TERM $server 2>/dev/null || true; wait $server 2>/dev/null || true; rm -rf "$folder"' EXIT
until grep -q 'is ready (' "$log"; do
  kill -0 $server 2>/dev/null || { cat "$log"; exit 1; }
  sleep 0.2
done
base="$(grep -oE 'http://127\.0\.0\.1:[0-9]+' "$log" | head -n 1)"
end=$(($(date +%s) + minutes * 60))
round=0
while [ "$(date +%s)" -lt "$end" ]; do
  round=$((round + 1))
  echo "== round $round, $(ps -o rss= --ppid "$server" | awk "{s += \$1} END {print int(s / 1024)}") MB in all processes"
  .venv/bin/forebay bench tts --url "${base/http/ws}/tts" --scenario mixed --duration "${SOAK_SECONDS:-60}" \
    --seed "$round"
done
