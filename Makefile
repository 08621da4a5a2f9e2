# `make run` and `make test` set up all they need: Debian packages (scripts/system-packages), a
# virtual environment in .venv, and the extension, which is built again when its C sources change.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= examples/mvirt-net.toml
PYTEST ?= $(BIN)/python -m pytest
export PYTHON

C_SOURCES := $(filter-out %/_core.c,$(wildcard src/mvirt_net/ffi/*.c))
C_HEADERS := $(wildcard src/mvirt_net/ffi/*.h)
BUILD_INPUTS := $(C_SOURCES) $(C_HEADERS) src/mvirt_net/ffi/build.py setup.py
PY_FILES := src tests bench fuzz setup.py

.PHONY: help run demo test unit dist format bench bench-peers soak sanitize races fuzz fuzz-coverage mutants clean
.PHONY: protos completion lint lint-format lint-python lint-types lint-imports lint-c
help:
	@echo "make run       start the daemon on $(CONFIG) and say how to attach a VM"
	@echo "make demo      boot Debian guests, give them addresses and let them talk"
	@echo "make test      all tests, those with real guests included"
	@echo "make unit      all but those with real guests"
	@echo "make lint      formatting, lint, types, import contracts, C warnings"
	@echo "make sanitize  make unit with the extension under ASan and UBSan"
	@echo "make races     threads at work on the same ports under the thread sanitizer; for SECONDS (60)"
	@echo "make fuzz      each fuzz target for SECONDS (60); only TARGETS if given"
	@echo "make mutants   take each check of hostile input away and see its tests fail"
	@echo "make bench     the figures"
	@echo "make bench-peers  side by side with DPDK, Open vSwitch and kernel taps; figures into RESULTS"
	@echo "make soak      see whether it leaks, loses or spins; MINUTES=10 of traffic"
	@echo "make dist      wheel and source distribution, into dist"
	@echo "make format    format the Python files"
	@echo "make protos    compile the .proto files of the gRPC interface"
	@echo "make completion  write the files that let shells complete commands"
	@echo "make clean     remove everything that was built, .venv too"

# Setting up. A stamp in .make stands for a step that was done.

.make/system-build: scripts/system-packages
	@mkdir -p .make
	@scripts/system-packages build
	@touch $@

.make/system-test: scripts/system-packages tests/guest/packages.txt
	@mkdir -p .make
	@scripts/system-packages test
	@touch $@

.make/system-fuzz: scripts/system-packages
	@mkdir -p .make
	@scripts/system-packages fuzz
	@touch $@

.make/system-bench: scripts/system-packages
	@mkdir -p .make
	@scripts/system-packages bench
	@touch $@

.make/venv: .make/system-build
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --upgrade 'pip>=25.1' 'setuptools>=77' 'cffi>=2.0'
	@touch $@

.make/package: .make/venv pyproject.toml $(BUILD_INPUTS)
	@echo "Building and installing mvirt-net into $(VENV)"
	@$(BIN)/pip install -q --no-build-isolation -e '.[api]'
	@touch $@

.make/tools: .make/venv pyproject.toml
	@echo "Installing what tests and lint need into $(VENV)"
	@$(BIN)/pip install -q --group test --group lint --group dist
	@touch $@

.make/bench-tools: .make/venv pyproject.toml
	@echo "Installing what benchmarks need into $(VENV)"
	@$(BIN)/pip install -q --group bench
	@touch $@

.make/fuzz-tools: .make/venv pyproject.toml
	@echo "Installing what fuzzing needs into $(VENV)"
	@$(BIN)/pip install -q --group fuzz
	@touch $@

# Running.

# The sockets are in a folder that only this user can enter; its name stays the same, so that VMs
# find their sockets again after a restart.
run: .make/package
	@if [ -d "$$XDG_RUNTIME_DIR" ]; then dir=$$XDG_RUNTIME_DIR/mvirt-net; \
	else dir=$${TMPDIR:-/tmp}/mvirt-net-$$(id -u); fi; \
	mkdir -m 700 "$$dir" 2>/dev/null || { [ -O "$$dir" ] && [ ! -L "$$dir" ] && chmod 700 "$$dir"; } \
	|| { echo "make run: $$dir is not ours" >&2; exit 1; }; \
	exec $(BIN)/mvirt-net serve --config $(CONFIG) --socket-dir "$$dir" --print-attach

demo: .make/package .make/tools .make/system-test
	@$(BIN)/python -m tests.guest.demo

bench: .make/package .make/tools
	@$(BIN)/python -m bench

# As root: huge pages and taps. 20 minutes, if the machine is quiet; two, and no guests, with QUICK=--quick.
RESULTS ?= build/bench
SIDE_BY_SIDE = instructions peers $(if $(QUICK),,guests)
bench-peers: .make/package .make/tools .make/system-bench .make/system-test .make/bench-tools
	@$(BIN)/python -m bench $(SIDE_BY_SIDE:%=--only %) --results $(RESULTS) $(QUICK)

MINUTES ?= 10
soak: .make/package .make/tools
	@$(BIN)/python -m bench.soak --minutes $(MINUTES)

# Checking.

test: .make/package .make/tools .make/system-test
	$(PYTEST) --durations=10

unit: .make/package .make/tools
	$(PYTEST) -m 'not guest and not dist'

dist: .make/tools
	@rm -rf dist
	@scripts/dist $(BIN)/python dist

# Some minutes: each check in C is a build of its own.
mutants: .make/package .make/tools
	@$(BIN)/python -m tests.mutate $(ROWS)

# Parts of their own, so that `make -k lint` goes through all of them.
lint: lint-format lint-python lint-types lint-imports lint-c

lint-format: .make/tools
	$(BIN)/ruff format --check $(PY_FILES)

lint-python: .make/tools
	$(BIN)/ruff check $(PY_FILES)

lint-types: .make/package .make/tools
	$(BIN)/mypy

lint-imports: .make/package .make/tools
	$(BIN)/lint-imports --no-cache

HAS_DPDK = $(shell pkg-config --exists libdpdk 2>/dev/null && echo yes)
# The headers of others are not ours to warn of.
DPDK_FLAGS = $(patsubst -I%,-isystem %,$(shell pkg-config --cflags libdpdk))
HAS_VALGRIND = $(wildcard /usr/include/valgrind/callgrind.h)
LINTED_C = $(filter-out $(if $(HAS_VALGRIND),,bench/callgrind.c),$(wildcard bench/*.c)) \
	$(if $(HAS_DPDK),$(wildcard bench/peers/*.c)) $(wildcard tests/*/*.c fuzz/*.c)

# With all compilers that are there; the flags are those of the build. What needs DPDK or valgrind is
# left out where they are not.
lint-c: .make/tools
	@for cc in gcc clang; do command -v $$cc >/dev/null || continue; \
	flags=$$(cd src/mvirt_net/ffi && $(CURDIR)/$(BIN)/python -c \
	'import build; print(*build.FLAGS, *build.WARNINGS)') || exit; \
	for file in $(C_SOURCES) $(LINTED_C); do echo "$$cc -Werror $$file"; \
	case $$file in bench/peers/*) more="$(DPDK_FLAGS)";; *) more=-Isrc/mvirt_net/ffi;; esac; \
	$$cc $$flags $$more -Wconversion -Werror -c -o /dev/null $$file || exit; done; done

COMPLETION := contrib/completion
completion: .make/package
	@for file in bash/mvirt-net zsh/_mvirt-net fish/mvirt-net.fish; do \
	_MVIRT_NET_COMPLETE=$${file%/*}_source $(BIN)/mvirt-net >$(COMPLETION)/$$file || exit; done

# Without source information, the comments that is, so that only what counts changes the result.
PROTOS := src/mvirt_net/api/proto
protos: .make/tools
	@cd $(PROTOS) && $(CURDIR)/$(BIN)/python -m grpc_tools.protoc -I . \
	--descriptor_set_out=descriptors.binpb $$(find . -name '*.proto' -printf '%P\n' | sort)

format: .make/tools
	$(BIN)/ruff format $(PY_FILES)
	$(BIN)/ruff check --fix $(PY_FILES)

# Freed memory is kept for a while, to find who uses it, but not so much that tests take it for a leak;
# the soak, which measures that closely, is left out.
#
# A copy, so that the instrumented extension never gets in the way of the real one. Python itself is
# not instrumented: the sanitizers come in by LD_PRELOAD, and what Python leaks is none of ours.
SANITIZED := $(CURDIR)/build/sanitize
SANITIZER_LIBS = $(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libubsan.so)

SANITIZED_STAMP := build/sanitize/.built

$(SANITIZED_STAMP): .make/package .make/tools $(wildcard src/mvirt_net/*.py src/mvirt_net/*/*.py)
	@echo "Building the extension with ASan and UBSan"
	@rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	@cp -r setup.py pyproject.toml README.md src $(SANITIZED)
	@find $(SANITIZED) -name '*.so' -delete
	@cd $(SANITIZED) && MVIRT_SANITIZE=address,undefined \
	$(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace
	@nm $(SANITIZED)/src/mvirt_net/ffi/_core*.so | grep -q __asan_
	@touch $@

sanitize: $(SANITIZED_STAMP)
	LD_PRELOAD="$(SANITIZER_LIBS)" PYTHONPATH=$(SANITIZED)/src \
	ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=1:thread_local_quarantine_size_kb=64 \
	UBSAN_OPTIONS=print_stacktrace=1 \
	$(PYTEST) -m 'not guest and not dist' -p no:cacheprovider --ignore=tests/test_soak.py

SECONDS ?= 60
RACES := $(CURDIR)/build/races

races: .make/system-build
	@mkdir -p build
	gcc -std=gnu11 -O1 -g -fno-strict-aliasing -fsanitize=thread -Isrc/mvirt_net/ffi \
	tests/races/races.c $(C_SOURCES) -o $(RACES) -lpthread -Wno-tsan
	TSAN_OPTIONS=halt_on_error=1 $(RACES) $(SECONDS)

# Fuzzing: libFuzzer's targets are the sources of the core, built by clang with what guides them.

TARGETS ?=
FUZZ := build/fuzz
FUZZ_C_TARGETS := rings forward routes offload
FUZZ_BINARIES := $(addprefix $(FUZZ)/,$(FUZZ_C_TARGETS))
FUZZ_FLAGS = $(shell cd src/mvirt_net/ffi && $(CURDIR)/$(BIN)/python -c \
	'import build; print(*build.FLAGS)') -O1 -g -fno-omit-frame-pointer -I src/mvirt_net/ffi
FUZZ_INSTRUMENT := -fsanitize=address,undefined -fno-sanitize-recover=all
FUZZ_OBJECTS := $(patsubst src/mvirt_net/ffi/%.c,$(FUZZ)/core/%.o,$(C_SOURCES)) $(FUZZ)/common.o

$(FUZZ)/core/%.o: src/mvirt_net/ffi/%.c $(C_HEADERS) | .make/system-fuzz .make/tools
	@mkdir -p $(@D)
	@clang $(FUZZ_FLAGS) $(FUZZ_INSTRUMENT) -fsanitize=fuzzer-no-link -c -o $@ $<

$(FUZZ)/common.o: fuzz/common.c fuzz/common.h $(C_HEADERS) | .make/system-fuzz .make/tools
	@mkdir -p $(@D)
	@clang $(FUZZ_FLAGS) $(FUZZ_INSTRUMENT) -fsanitize=fuzzer-no-link -c -o $@ $<

$(FUZZ_BINARIES): $(FUZZ)/%: fuzz/%.c fuzz/common.h $(FUZZ_OBJECTS)
	@echo "Building $@"
	@clang $(FUZZ_FLAGS) $(FUZZ_INSTRUMENT) -fsanitize=fuzzer -o $@ $< $(FUZZ_OBJECTS)

fuzz: .make/fuzz-tools $(SANITIZED_STAMP) $(FUZZ_BINARIES)
	@FUZZ_PRELOAD="$(SANITIZER_LIBS)" FUZZ_PYTHONPATH=$(SANITIZED)/src \
	$(BIN)/python -m fuzz $(SECONDS) $(TARGETS)

# Which lines of the core the inputs reach that `make fuzz` has collected, and the seeds.
fuzz-coverage: .make/tools .make/system-fuzz
	@mkdir -p $(FUZZ)/coverage
	@for target in $(FUZZ_C_TARGETS); do \
	clang $(FUZZ_FLAGS) -fsanitize=fuzzer -fprofile-instr-generate -fcoverage-mapping \
	-o $(FUZZ)/coverage/$$target fuzz/$$target.c fuzz/common.c $(C_SOURCES) || exit; \
	mkdir -p $(FUZZ)/corpus/$$target; \
	LLVM_PROFILE_FILE=$(FUZZ)/coverage/$$target.profraw $(FUZZ)/coverage/$$target -runs=0 \
	$(FUZZ)/corpus/$$target fuzz/corpus/$$target 2>/dev/null || exit; done
	@cd $(FUZZ)/coverage && llvm-profdata merge -o all.profdata *.profraw && \
	llvm-cov report -instr-profile=all.profdata $(firstword $(FUZZ_C_TARGETS)) \
	$(addprefix -object ,$(wordlist 2,9,$(FUZZ_C_TARGETS))) $(abspath $(C_SOURCES)) \
	-show-region-summary=false -show-branch-summary=false

clean:
	rm -rf $(VENV) .make build dist src/*.egg-info src/mvirt_net/ffi/_core.c
	find src -name '*.so' -delete
