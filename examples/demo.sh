#!/usr/bin/env bash
# The whole idea in one go (`make demo`): price the world, train here, serve the result, ask it something.
# DATA=folder-or-URI trains on your text; DEMO_HOME=folder keeps its state elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v curl >/dev/null || {
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -q >/dev/null && apt-get install -qy curl >/dev/null
  else
    echo "curl is missing: sudo apt-get install curl" >&2
    exit 1
  fi
}

bin="${CARGO_TARGET_DIR:-target}/release"
export PETAFLOP_HOME="${DEMO_HOME:-${PETAFLOP_CACHE:-$HOME/.cache/petaflop}/demo}"
mkdir -p "$PETAFLOP_HOME"
report=$(mktemp)
stop() {
  "$bin/petaflop" stop inferenceservice/quickstart >/dev/null 2>&1 || true
  rm -f "$report"
}
trap stop EXIT

echo "\$ petaflop run -f examples/quickstart.yaml${DATA:+ --data $DATA}    # state in $PETAFLOP_HOME" >&2
"$bin/petaflop" run -f examples/quickstart.yaml ${DATA:+--data "$DATA"} --json >"$report"

url=$(sed -n 's/.*"url": *"\([^"]*\)".*/\1/p' "$report" | head -n 1)
test -n "$url" || { echo "the run's report names no service:" >&2; cat "$report" >&2; exit 1; }
prompt='/// Returns the'
echo >&2
echo "\$ curl $url/v1/completions -d '{\"prompt\": \"$prompt\", …}'" >&2
answer=$(curl --silent --show-error --fail-with-body --max-time 120 "$url/v1/completions" \
  --header 'content-type: application/json' \
  --data "{\"model\": \"quickstart\", \"prompt\": \"$prompt\", \"max_tokens\": 96, \"temperature\": 0.7, \"seed\": 7}")
printf '%s\n' "$answer" >&2
case "$answer" in
*'"text":"'*) ;;
*) echo "the answer holds no text" >&2; exit 1 ;;
esac

echo >&2
echo "\$ petaflop costs" >&2
"$bin/petaflop" costs >&2
echo >&2
echo "Again: the same command finds the finished key and trains nothing. To train anew: rm -r $PETAFLOP_HOME" >&2
