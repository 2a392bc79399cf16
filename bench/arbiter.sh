#!/bin/sh
# Prints every policy's figures beside the exact optimum, in the four settings of docs/arbiter.md: each zone as a market of its own,
# then the sets of zones as one market. TRACES is the folder of the nine single-machine traces.
#   bench/arbiter.sh PETAFLOP TRACES [POLICIES]
set -eu
petaflop=$1 traces=$2 policies=${3:-all}
zones() { for zone in "$@"; do echo "$traces/us-${zone}_v100_1.json"; done; }
settings() {
  for deadline in 52h 70h; do for restart in 0.05h 0.20h; do
    echo "deadline $deadline, restart $restart:"
    "$petaflop" simulate spot --deadline "$deadline" --restart "$restart" --start-window 70h --policy "$policies" "$@"
  done; done
}
echo "== nine zones, each a market of its own"
settings --start-every 4h --trace "$traces"/us-*_v100_1.json
for set in "east-1a east-1c east-1d" "east-1a east-2b west-2c" "east-1a east-1c east-1d east-1f east-2a east-2b" \
  "west-2a west-2b west-2c" "east-1a east-1c east-1d east-1f east-2a east-2b west-2a west-2b west-2c"; do
  echo "== one market of $set"
  # shellcheck disable=SC2046,SC2086
  settings --start-every 8h --together --trace $(zones $set)
done
