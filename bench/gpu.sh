#!/usr/bin/env bash
# What a GPU does with our kernels, in one run of minutes that needs nothing but the runtime's binary and a driver
# (for cuda NVRTC, for hip hiprtc): what the machine is, every kernel beside the interpreter, products, training.
#
#   bench/gpu.sh petaflop-runtime cuda|hip|vulkan|metal [FLAGS of the runtime, such as --emulated] >>figures.jsonl
#
# stdout: a line of JSON each. stderr: what people read. It ends with the code of the first step that failed.
set -euo pipefail
runtime=${1:?the path of petaflop-runtime} device=${2:?cuda, hip, vulkan or metal}
shift 2

"$runtime" detect --json
"$runtime" check --device "$device" "$@"
"$runtime" bench training --json --device "$device" "$@"
