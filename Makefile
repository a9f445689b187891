PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINUTES ?= 2
KERNELS := $(wildcard src/clearhead/native/*.h src/clearhead/native/*.cpp)
PEER = $(if $(NANOGPT),--nanogpt $(NANOGPT))
WRITER = $(if $(LLAMA_BENCH),--llama-bench $(LLAMA_BENCH))

.PHONY: help demo test lint docs bench clean

help:
	@echo "make demo    install, train a small GPT on the text that Python carries, generate from it"
	@echo "make test    lint, types, floors, the whole test suite"
	@echo "make docs    build the documentation into site/"
	@echo "make bench SHAKESPEARE=FILE CORPUS=FILE [NANOGPT=DIR] [LLAMA_BENCH=FILE] [HELLASWAG=FILE]   measure, and rewrite docs/benchmarks.md"
	@echo "make clean   remove .venv, runs and everything built"

demo: $(VENV)/run.stamp
	@$(BIN)/clearhead train --preset nano --minutes $(MINUTES) --out runs/demo --resume

test: lint
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered -n auto --maxprocesses 4 --dist worksteal

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/longest.py

docs: $(VENV)/dev.stamp
	$(BIN)/python docs/scripts/reference.py
	$(BIN)/python docs/scripts/figures.py
	$(BIN)/mkdocs build --strict

bench: $(VENV)/dev.stamp
	@test -n "$(SHAKESPEARE)" -a -n "$(CORPUS)" || { echo "give SHAKESPEARE=FILE (tinyshakespeare's text) and CORPUS=FILE (some 50 MB of text)"; exit 2; }
	$(BIN)/python benchmarks/time_to_loss.py --data $(SHAKESPEARE) $(PEER)
	$(BIN)/python benchmarks/train_step.py $(PEER)
	$(BIN)/python benchmarks/prepare.py --data $(CORPUS)
	$(BIN)/python benchmarks/convert.py
	$(BIN)/python benchmarks/lens.py
	$(BIN)/python benchmarks/generate.py $(WRITER)
	$(if $(HELLASWAG),$(BIN)/python benchmarks/evaluate.py --data $(HELLASWAG))
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf $(VENV) runs site build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(VENV)/run.stamp: pyproject.toml constraints.txt $(KERNELS)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing clearhead into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt $(KERNELS)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs,tensorboard]'
	@touch $@
