#!/usr/bin/env bash
# Forebay on containers: makes deploy/compose/.env and an API key once, then starts everything.
#   scripts/up.sh          gateways, workers, Valkey, PostgreSQL, Prometheus, Grafana
#   scripts/up.sh --gpu    and a language model on the GPU (docs/howto/gpu-8gb.md)
set -euo pipefail
cd "$(dirname "$0")/../deploy/compose"
profile=()
[ "${1:-}" = --gpu ] && profile=(--profile gpu)

command -v docker >/dev/null || { echo "docker is not installed" >&2; exit 1; }
docker compose version >/dev/null 2>&1 || { echo "docker has no compose plugin" >&2; exit 1; }

secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
[ -f .env ] || { (umask 077 && cp .env.example .env); echo "made deploy/compose/.env"; }
for name in VALKEY_PASSWORD POSTGRES_PASSWORD GRAFANA_PASSWORD; do
  if grep -q "^$name=$" .env; then
    sed -i.bak "s/^$name=$/$name=$(secret)/" .env && rm -f .env.bak
  fi
done

mkdir -p ../../models
docker compose "${profile[@]}" build
container() { docker compose run --rm --no-deps -T --entrypoint sh gateway-a -c "$1"; }
if ! container '[ -s "$FOREBAY_SERVER_KEYS_FILE" ]'; then
  echo "an API key, shown once:"
  container 'forebay keys create --scope admin'
fi
container 'f=$FOREBAY_SERVER_DATA_DIR/prometheus.key; [ -s "$f" ] || forebay keys create --scope admin prometheus > "$f"'
docker compose "${profile[@]}" up -d
echo "http://localhost:$(grep '^HTTP_PORT=' .env | cut -d= -f2)/  (Grafana: http://localhost:3001/)"
