# Every target works on a fresh clone with Python 3.11 and nothing else: it creates .venv and installs what it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# What is installed beside the package; CI adds the frameworks whose files are tested.
EXTRAS ?= dev
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
# Threads that wait for each other actively make tests on busy cores many times slower.
test fuzz lesions remedies: export OMP_WAIT_POLICY ?= passive

FUZZ_MINUTES ?= 10

.PHONY: demo test check fuzz bench samples schema rules lesions remedies clean

demo: $(STAMP)
	@$(BIN)/nndiag scan sample_checkpoints/dying_mlp

test: $(STAMP)
	$(BIN)/python -m pytest -n 2

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz --minutes $(FUZZ_MINUTES)

samples: $(STAMP)
	$(BIN)/python sample_checkpoints/make.py

schema: $(STAMP)
	$(BIN)/python -m nndiag.report.schema src/nndiag/nndiag.schema.json

rules: $(STAMP)
	$(BIN)/python -m nndiag.report.rules_page docs/rules.md

lesions: $(BENCH_STAMP)
	$(BIN)/python -m benchmarks.lesions --output benchmarks/LESIONS.md

remedies: $(STAMP)
	$(BIN)/python -m benchmarks.remedies --output benchmarks/REMEDIES.md

bench: $(BENCH_STAMP)
	$(BIN)/python -m benchmarks --output benchmarks/RESULTS.md

$(STAMP): pyproject.toml constraints.txt
	@echo 'installing into $(VENV): a few minutes, once'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $(STAMP)

$(BENCH_STAMP): $(STAMP)
	@echo 'installing the tools that nndiag is compared with'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[bench]"
	@touch $(BENCH_STAMP)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
