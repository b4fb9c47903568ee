# Quartet. `make demo` and `make test` set everything up themselves.
#
#   PYTHON=python3.12   another interpreter, 3.11 or newer
#   PIP_ARGS="..."      extra options for pip, such as the index of the CPU build of torch
#   JOBS=4              processes of the tests

PYTHON ?= python3
PIP_ARGS ?=
JOBS ?= 2
BIN := .venv/bin
QUARTET := $(BIN)/quartet
TEXT := The quick brown fox, which had not eaten for two days, jumped over the very lazy dog and ran straight into the hen house.

.PHONY: help setup demo test test-full lint clean

help:
	@echo "make demo       Verilog, co-simulation, a pruned sentence, the 30 benchmarks, a report"
	@echo "make test       linters, types, import rules, all quick tests"
	@echo "make test-full  the same with the long runs"
	@echo "make clean      remove builds and results (the environment .venv stays)"

setup: .venv/.complete

.venv/.complete: requirements.lock pyproject.toml
	@tools/check_system.sh $(PYTHON)
	@echo "Setting up .venv (once; about 2 GB of packages) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PIP_ARGS) -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	@echo "== 1. Verilog of the top-k engine as published (16 lanes), and of a small attention core"
	@$(QUARTET) rtl topk zero_eliminator --preset paper
	@$(QUARTET) rtl attention --preset tiny
	@echo "== 2. The emitted Verilog against the golden models"
	@$(QUARTET) cosim topk zero_eliminator --preset tiny
	@echo "== 3. A sentence through all layers of a real model, its attention computed by the simulated Verilog"
	@$(QUARTET) run minilm --text "$(TEXT)" --keep 0.5 --heads 0.8 --values 0.6 --bits 6+4 --threshold 0.3 \
		--preset tiny --rtl
	@echo "== 4. The paper's 30 benchmarks"
	@$(QUARTET) bench
	@echo "== 5. The report"
	@$(QUARTET) report

# One thread for each process: PyTorch's own threads would fight over the cores that the tests share.
test test-full: export OMP_NUM_THREADS = 1

test: setup lint
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -q -m "not full"

test-full: setup lint
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -q

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

clean:
	rm -rf .build results .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find rtl_out -mindepth 1 ! -name README.md -delete
	find hw sim algo benchmarks tests -name __pycache__ -type d -exec rm -rf {} +
