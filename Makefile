# `make tune` and `make test` need Python 3.10 to 3.13, pip and make; they build .venv when pyproject.toml changes.
PYTHON ?= python3
# One release for all; its CUDA build and its CPU build both serve.
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: tune test lint example
tune: .venv/ready
	$(BIN)/autotune tune --workload examples/minilm.jsonl --again --trials 16 --budget 100s

test: .venv/ready
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

example: .venv/ready
	$(BIN)/python examples/minilm.py

.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,examples]"
	touch .venv/ready
