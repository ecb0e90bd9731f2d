#!/usr/bin/env bash
# A long mixed run against a server of its own: drops, cancels and stalled readers, until
# SOAK_MINUTES (default 30) have passed or a check of `forebay bench tts` fails.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes="${SOAK_MINUTES:-30}"
folder="$(mktemp -d)"
log="$folder/serve.log"
.venv/bin/forebay serve --port 0 --data-dir "$folder/data" \
  --engine text=synthetic --engine speech=synthetic:rtf=0.1,latency_ms=10,slots=16 \
  >"$log" 2>&1 &
server=$!
trap 'kill -TERM $server 2>/dev/null || true; wait $server 2>/dev/null || true; rm -rf "$folder"' EXIT
for _ in $(seq 100); do
  base="$(grep -oE 'http://127\.0\.0\.1:[0-9]+' "$log" | head -n 1 || true)"
  [ -n "$base" ] && curl -fsS "$base/readyz" >/dev/null 2>&1 && break
  sleep 0.2
done
end=$(($(date +%s) + minutes * 60))
round=0
while [ "$(date +%s)" -lt "$end" ]; do
  round=$((round + 1))
  echo "== round $round, $(ps -o rss= -p "$server" | tr -d ' ') KB supervisor"
  .venv/bin/forebay bench tts --url "${base/http/ws}/tts" --scenario mixed --duration 60 \
    --seed "$round"
done
