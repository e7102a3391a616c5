# Everything starts here: `make help`.  Only Python (>= 3.11) and make are needed beforehand.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SWEEPS := $(basename $(notdir $(wildcard sweeps/configs/*.toml)))
STUDIES := $(basename $(notdir $(wildcard sweeps/configs/search/*.toml)))
EXECUTOR ?= local
RUN_FLAGS ?=
RESULTS ?= results
export SCALING_RESULTS := $(RESULTS)
# The sweeps that have a tracked table.
REPORTED = $(filter $(SWEEPS),$(patsubst %_runs.csv,%,$(notdir $(wildcard $(RESULTS)/tables/*_runs.csv))))
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup check lint types test test-slow test-slurm test-browser status figures study-figures report reproduce mlflow-ui bench bench-search clean $(SWEEPS:%=sweep-%) $(SWEEPS:%=plan-%) $(STUDIES:%=search-%)

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-24s %s\n", $$1, $$2}'
	@echo "  sweep-NAME               plan, train, fit and draw a sweep; NAME is one of:"
	@echo "                           $(SWEEPS)" | fold -s -w 90 | sed '2,$$s/^/                           /'
	@echo "  plan-NAME                only print what the sweep would run and what it costs"
	@echo "  search-NAME              have Optuna search shapes or settings, and draw; NAME is one of:"
	@echo "                           $(STUDIES)" | fold -s -w 90 | sed '2,$$s/^/                           /'

setup: $(STAMP) ## make the virtual environment and install everything, exact versions

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; try: make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

$(SWEEPS:%=sweep-%): sweep-%: $(STAMP)
	$(BIN)/python -m sweeps run $* --executor $(EXECUTOR) $(if $(filter slurm,$(EXECUTOR)),--then fit) $(RUN_FLAGS)
	@$(if $(filter slurm,$(EXECUTOR)),,$(BIN)/python -m analysis fit $*)
	@$(if $(filter slurm,$(EXECUTOR)),,$(BIN)/python -m analysis figures $*)
	@$(if $(filter slurm,$(EXECUTOR)),,$(BIN)/python -m analysis report $*)
	-@$(if $(filter slurm,$(EXECUTOR)),,$(BIN)/python -m sweeps sync --if-run $*)

$(SWEEPS:%=plan-%): plan-%: $(STAMP)
	@$(BIN)/python -m sweeps plan $*

$(STUDIES:%=search-%): search-%: $(STAMP)
	$(BIN)/python -m sweeps search $* --executor $(EXECUTOR) $(RUN_FLAGS)
	@$(BIN)/python -m analysis export $*
	@$(BIN)/python -m analysis figures $*

search-%:
	@echo "error: no study sweeps/configs/search/$*.toml; there are: $(STUDIES)" >&2; exit 2

sweep-% plan-%:
	@echo "error: no sweep file sweeps/configs/$*.toml; there are: $(SWEEPS)" >&2; exit 2

status: $(STAMP) ## what has been run
	@$(BIN)/python -m sweeps status

figures: $(STAMP) ## redraw every figure and table from tracked tables, no training
	$(BIN)/python -m analysis figures

study-figures: $(STAMP) ## the study: its figures, tables and what its text quotes, from tracked tables alone
	$(BIN)/python -m analysis figures --only 'study*' --only 'published_compare'
	$(BIN)/python -m analysis document results/study/STUDY.md

report: $(STAMP) ## one HTML page a sweep in results/reports/; MLflow has those of sweeps that were run here
	$(BIN)/python -m analysis report
	@$(if $(REPORTED),$(BIN)/python -m sweeps sync --if-run $(REPORTED))

reproduce: $(STAMP) ## fit published studies again, value against value (about half a minute)
	$(BIN)/python -m analysis reproduce --out $(RESULTS)/tables

# bf16 is small, since a processor without its instructions emulates it. Narrow networks have one thread: the
# wait of a second one for so little work would count as processor time.
BENCHED := dense,lowrank-32,blockdense-32,blockshuffle-32
bench: $(STAMP) ## speed of this machine, structures interleaved (several minutes); tables and figures
	$(BIN)/python -m trainer bench ffn
	$(BIN)/python -m trainer bench ffn --widths 1024 --tokens 128,512,2048 --structures $(BENCHED) --max-seconds 60
	$(BIN)/python -m trainer bench ffn --widths 256 --tokens 512 --precisions bf16 --structures $(BENCHED) --max-seconds 60
	$(BIN)/python -m trainer bench ffn --widths 1024 --tokens 2048 --compile --structures $(BENCHED) --max-seconds 60
	$(BIN)/python -m trainer bench train --structures $(BENCHED) --precisions fp32
	$(BIN)/python -m trainer bench decode
	$(BIN)/python -m trainer bench length --max-seconds 240
	for width in 64 128 256; do \
	  $(BIN)/python -m trainer bench decode --d-model $$width --batches 1 --threads 1 --repeats 200 --max-seconds 60 \
	    || exit 1; \
	done
	$(BIN)/python -m analysis figures

bench-search: $(STAMP) ## runs that tpe and random need on a planted objective, and what a trial costs (minutes)
	$(BIN)/python -m sweeps.search.bench

mlflow-ui: $(STAMP) ## browse the runs at http://127.0.0.1:5000
	$(BIN)/mlflow ui --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///$(RESULTS)/mlflow.db}

check: lint types test ## lint, types and the quick tests

lint: $(STAMP) ## ruff: format and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy

test: $(STAMP) ## the quick tests (under 3 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not slow" -n auto

test-slow: $(STAMP) ## whole sweeps, kills and races (several minutes)
	$(BIN)/python -m pytest -m "slow and not slurm and not browser"

# Exit code 3 of the installer: not possible here; the tests then say why they are skipped.
test-slurm: $(STAMP) ## on a real Slurm (root on Debian or Ubuntu, which installs it; else skipped)
	@[ "$$(id -u)" != 0 ] || for what in "" accounting postgres; do tests/slurm/install.sh $$what || [ $$? = 3 ] || exit 1; done
	$(BIN)/python -m pytest -m slurm -rs

test-browser: $(STAMP) ## reports in a real Chromium (root on Debian or Ubuntu, which installs it; else skipped)
	@[ "$$(id -u)" != 0 ] || tests/browser/install.sh || [ $$? = 3 ] || exit 1
	$(BIN)/python -m pytest -m browser -rs

clean: ## remove the environment and caches; runs and results stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find sweeps trainer analysis tests -name __pycache__ -type d -prune -exec rm -rf {} +
