# `make bench` and `make test` need python3, g++ and make; they set up everything else in .venv.

PYTHON ?= python3
BIN := .venv/bin
CPP := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CPP_TESTS := $(shell find tests bench examples -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
SANITIZED := build/sanitize
BENCH_ARGS ?= --json build/bench.json

# The tests in parts, by the first letter of their files: the last to run are to be short.
PARTS := c a-b d-k l-o p-z
SLOW := $(addprefix pytest-slow-,$(PARTS))
QUICK := $(addprefix pytest-quick-,$(PARTS))

# With TORCH=2.15.0, `make test` and `make pytest` run in a copy of this folder, with that torch.
COPY := build/torch-$(TORCH)

.PHONY: bench test build lint format pytest pytest-slow pytest-quick $(SLOW) $(QUICK) sanitize docs numbers wheel clean

bench: build
	$(BIN)/python -m bench $(BENCH_ARGS)

ifdef TORCH
test pytest:
	mkdir -p $(COPY)
	tar -c --exclude=./build --exclude=./dist --exclude=./.git --exclude='./.venv*' \
	    --exclude='*.so' . | tar -x -C $(COPY)
	sed -i 's/^torch==.*/torch==$(TORCH)/' $(COPY)/requirements-dev.txt
	$(MAKE) -C $(COPY) --jobs 2 --output-sync=target $(SLOW) $(QUICK) TORCH=
else
# Each keeps about one core busy, so two run at once; the longest begin.
test: lint build
	$(MAKE) --jobs 2 --output-sync=target $(SLOW) sanitize $(QUICK)

pytest: pytest-slow pytest-quick

pytest-slow: $(SLOW)

$(SLOW): pytest-slow-%: build
	$(BIN)/python -m pytest -m slow $(wildcard tests/test_[$*]*.py)

pytest-quick: $(QUICK)

$(QUICK): pytest-quick-%: build
	$(BIN)/python -m pytest -m "not slow" $(wildcard tests/test_[$*]*.py)
endif

build: build/.extension

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP) $(CPP_TESTS)

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP) $(CPP_TESTS)

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

# The pages of docs/ as HTML in docs/_build; a warning is an error.
docs: build
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build

# The figures and pictures in README.md, from the runs in bench/results.
numbers: build
	$(BIN)/python docs/readme_numbers.py

# Source package, and from it a wheel for the torch and Python of .venv, in dist.
wheel: .venv/.ready
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf build dist docs/_build *.egg-info fused_lstm/_C*.so

.venv/.ready: requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	touch $@

build/.extension: .venv/.ready setup.py pyproject.toml $(CPP)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@
