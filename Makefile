# Every target sets itself up: Python 3.10 or newer and make are enough. `make` alone lists the targets.
PYTHON ?= python3
# `make test ARGS='-k retrieval -x'`, `make demo ARGS='--minutes 1'`
ARGS ?=
# Processes that run the tests; each computes on one thread.
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help demo test check bench easy-vqa clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/run  ## pre-train a tiny model, search, explain; writes runs/demo/report.html
	@$(BIN)/albef demo $(ARGS)

test: $(VENV)/dev  ## run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(ARGS)

check: $(VENV)/dev  ## formatting, lint, types, then the tests: what CI runs
	@$(BIN)/ruff format --quiet --check . || { echo "make check: format with $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary albef albef_demo
	@$(MAKE) --no-print-directory test

bench: $(VENV)/dev  ## time, memory and arithmetic of training, ranking, loading and search
	@$(BIN)/python -m benchmarks $(ARGS)

easy-vqa: $(VENV)/run  ## questions about the images of the package easy-vqa, from scratch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check easy-vqa==1.0
	@$(BIN)/python scripts/easy_vqa_lists.py --out runs/easy-vqa-data
	@$(BIN)/albef train easy-vqa-align
	@$(BIN)/albef train easy-vqa

clean:  ## remove the environment, caches and build products; runs stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# Dots for packages and a line for every large file; pip's own words only when it fails.
define install
@echo "installing $(WHAT) into $(VENV); the first time takes a minute or two, torch is most of it"
@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e "$(WHAT)" 2>&1 | tee $(VENV)/pip.log \
	| awk '/^ *(Collecting|Processing) / {printf "."} / Downloading .*[0-9] [MG]B\)/ {printf "\n%s ", $$0} \
		/^Installing collected/ {printf " installing"} {fflush()} END {print ""}' \
	|| { tail -n 30 $(VENV)/pip.log >&2; echo "make: the installation failed; all of it stands in $(VENV)/pip.log" >&2; exit 1; }
@touch $@
endef

$(VENV)/run: WHAT := .[demo]
$(VENV)/run: $(VENV)/python pyproject.toml constraints.txt
	$(install)

$(VENV)/dev: WHAT := .[dev,demo,parquet,tensorboard]
$(VENV)/dev: $(VENV)/python pyproject.toml constraints.txt
	$(install)
	@touch $(VENV)/run  # all that the demo needs is in it

$(VENV)/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here; name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("make: albef needs Python 3.10 or newer, $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.11 ...")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "make: $(PYTHON) cannot make environments (no ensurepip); on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@
