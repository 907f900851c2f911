# `make bench` and `make test` need python3, g++ and make; they set up everything else in .venv.

PYTHON ?= python3
BIN := .venv/bin
CPP := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CPP_TESTS := $(shell find tests bench -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
SANITIZED := build/sanitize
BENCH_ARGS ?= --json build/bench.json

.PHONY: bench test build lint format pytest sanitize clean

bench: build
	$(BIN)/python -m bench $(BENCH_ARGS)

# The two runs of the tests keep a core each busy: side by side they take the time of one.
test: lint build
	$(MAKE) --jobs 2 --output-sync=target pytest sanitize

build: build/.extension

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP) $(CPP_TESTS)

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP) $(CPP_TESTS)

pytest: build
	$(BIN)/python -m pytest

# The core tests again, with the C++ code compiled with -fsanitize=address,undefined. They run from
# the folder of that build, so that Python imports it and not the one in this folder. The sanitizer's
# library must be in the process first; what Python and torch leak at exit is not looked at.
sanitize: .venv/.ready
	FUSED_LSTM_SANITIZE=1 FUSED_LSTM_CUDA=0 $(BIN)/python setup.py --quiet \
	    build --build-temp $(SANITIZED)/temp --build-lib $(SANITIZED)/lib
	cd $(SANITIZED)/lib && \
	    LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	    FUSED_LSTM_SANITIZE=1 PYTHONPATH=$(CURDIR) \
	    $(CURDIR)/$(BIN)/python -m pytest -m core -c $(CURDIR)/pyproject.toml -p no:cacheprovider \
	    $(CURDIR)/tests

clean:
	rm -rf build dist *.egg-info fused_lstm/_C*.so

.venv/.ready: requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	touch $@

build/.extension: .venv/.ready setup.py pyproject.toml $(CPP)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@
