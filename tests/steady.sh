#!/usr/bin/env bash
# `cargo test` with the options given, which tells a broken test from an unsteady one. Many tests
# start real servers and share a machine with whatever else runs there: one or two that fail are run
# again, alone. Passing then is said as UNSTEADY, and is a defect to mend. More than two failures, a
# program that ended in the middle, and a test that fails again are failures.
set -euo pipefail

cargo=${CARGO:-cargo}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

status=0
"$cargo" test "$@" --no-fail-fast 2>&1 | tee "$log" || status=$?
[ "$status" != 0 ] || exit 0

# As cargo lists them at its end: -p PACKAGE --test PROGRAM, or --lib, --bin, --doc.
mapfile -t programs < <(sed -nE 's/^ +`-p [^ ]+ (.*)`$/\1/p' "$log")
mapfile -t failed < <(sed -nE 's/^test (.*) \.\.\. FAILED$/\1/p' "$log")
if [ "${#programs[@]}" = 0 ] || [ "${#failed[@]}" -lt "${#programs[@]}" ] || [ "${#failed[@]}" -gt 2 ]; then
  echo "${#failed[@]} tests failed in ${#programs[@]} programs: not run again." >&2
  exit "$status"
fi
echo "== once more, alone: ${failed[*]}"
# shellcheck disable=SC2068 # two words each
"$cargo" test "$@" ${programs[@]} -- --exact "${failed[@]}" --test-threads 1 --nocapture
printf 'UNSTEADY: %s failed, then passed alone. Mend it.\n' "${failed[@]}"
