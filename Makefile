# make help lists the targets. Everything runs in .venv, which every target makes first if it is not there, as far as it needs it.
PYTHON ?= python3
BIN := .venv/bin
# Arguments for the main job: make run ARGS="data=plaid"
ARGS ?=
# What make ui shows, and where: make ui STORE=path/mlflow.db PORT=5001
STORE ?= mlflow.db
PORT ?= 5000
# pip would compile all 21,000 modules, a minute; make run imports a third, which are kept compiled from then on, whatever the environment says.
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help setup run study test test-slow test-oldest test-cluster audit lock test-notebooks notebooks test-browser lint format docs bench-train bench-runtimes bench-meter selftest freeze tables figures report published ui clean

help: ## what each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: .venv/.dev ## make .venv with everything but what clusters and a team's server need

.venv/.done: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) -e '.[optuna,parallel,report,runtimes]'
	@touch $@

# What only developers need; make run does not wait for it.
.venv/.dev: .venv/.done
	$(PIP_INSTALL) -e '.[dev,docs,notebooks]'
	@touch $@

run: .venv/.done ## the main job: train T4, deploy it, prune it twice, measure; a table and a picture at the end
	$(BIN)/python -m tsexp -m hydra/launcher=joblib model=t4 variant=dense,onnxruntime,all_50,all_75 $(ARGS)

study: .venv/.done ## the whole study, hours: python -m tsexp plan experiment=paper says how many; the same command goes on where it stopped
	@failed=0; for part in paper paper_company; do \
	  $(BIN)/python -m tsexp -m experiment=$$part || { failed=$$?; [ $$failed -eq 1 ] || exit $$failed; }; \
	done; $(BIN)/python -m tsexp.report && exit $$failed  # 1: a job failed, which takes nothing else down

test: .venv/.dev ## the fast tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: .venv/.dev ## the tests that take minutes
	$(BIN)/python -m pytest --timeout 3600 -m slow

# Core tests; what needs a browser, TeX or a compiler has nothing to do with versions.
OLDEST := config data models hostile estimators classifier tracking training record report qat runtimes meters frozen search plan
EXTRAS := $(foreach e,dev optuna parallel report runtimes,--extra $(e))

test-oldest: .venv/.dev ## core tests with the oldest version of every dependency that pyproject.toml allows, in .venv-oldest (gigabytes)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-oldest
	$(BIN)/uv pip compile --quiet --resolution lowest-direct $(EXTRAS) pyproject.toml -o .venv-oldest/requirements.txt
	VIRTUAL_ENV=.venv-oldest $(BIN)/uv pip sync --quiet .venv-oldest/requirements.txt
	VIRTUAL_ENV=.venv-oldest $(BIN)/uv pip install --quiet --no-deps --editable .
	PYTHONPATH=src .venv-oldest/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(OLDEST:%=tests/test_%.py)

audit: .venv/.dev ## known vulnerabilities of what is installed (asks api.osv.dev); fails where it cannot look
	$(BIN)/pip-audit --local --skip-editable --strict --vulnerability-service osv

lock: .venv/.dev ## requirements/study.txt: the exact environment, as it is installed here, with hashes
	VIRTUAL_ENV=.venv $(BIN)/uv pip freeze --quiet --exclude-editable | $(BIN)/uv pip compile --quiet --generate-hashes --no-annotate \
	  --custom-compile-command 'make lock' $(PIP_FIND_LINKS:%=--find-links %) --constraints - \
	  $(EXTRAS) --extra notebooks pyproject.toml -o requirements/study.txt

test-browser: .venv/.dev ## the tests that need Chromium
	$(BIN)/python -m pytest --timeout 3600 -m browser

test-cluster: .venv/.dev ## sweeps on SLURM, Ray, PostgreSQL and MLflow's server, started and stopped here (minutes; Debian, as root)
	@sh tests/engines.sh
	$(PIP_INSTALL) -e '.[postgres,slurm]'
	$(PIP_INSTALL) -e '.[ray]' || echo 'the extra ray cannot be installed here: its tests are skipped'
	$(BIN)/python -m pytest --timeout 3600 -m cluster

test-notebooks: .venv/.dev ## execute the notebooks, to their end (minutes)
	$(BIN)/python -m pytest --timeout 3600 -m notebooks

notebooks: .venv/.dev ## notebooks/*.ipynb with their output, made from the .py files that are kept (minutes)
	$(BIN)/jupytext --quiet --to ipynb notebooks/*.py
	JUPYTER_PATH='$(CURDIR)/.venv/share/jupyter' $(BIN)/jupyter-execute --inplace notebooks/*.ipynb

lint: .venv/.dev ## style, types, spelling, and which part may import which
	$(BIN)/ruff check src tests notebooks docs/pages.py
	$(BIN)/ruff format --check src tests notebooks docs/pages.py
	$(BIN)/mypy
	$(BIN)/codespell src tests conf docs notebooks README.md Makefile
	$(BIN)/lint-imports

format: .venv/.dev ## put the code into shape
	$(BIN)/ruff check --fix src tests notebooks docs/pages.py
	$(BIN)/ruff format src tests notebooks docs/pages.py

docs: .venv/.dev ## the site with the API reference, in site/; a dead link or a warning fails it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench-train: .venv/.dev ## training speed against a bare PyTorch loop, and in bf16 against fp32, paired; ARGS="--data … --models …"
	$(BIN)/python tests/benchmarks/train.py $(ARGS)

bench-runtimes: .venv/.dev ## every runtime and mode against dense eager; ARGS="--data … --models …"; writes docs/runtimes.md
	$(BIN)/python tests/benchmarks/runtimes.py $(ARGS)

bench-meter: .venv/.dev ## does the meter's interval hold? 60 measurements of an artifact against itself; writes docs/meter.md (20 minutes)
	$(BIN)/python tests/benchmarks/meter.py $(ARGS)

selftest: .venv/.done ## does the meter tell the truth on this machine? (minutes)
	$(BIN)/python -m tsexp.doctor --selftest

freeze: .venv/.done ## read the store into report/frozen; another store or filter: ARGS="tracking.uri=… where=…"
	$(BIN)/python -m tsexp.report freeze $(ARGS)

# Both from one freeze, however many of these targets are asked for at once.
tables: freeze ## the tables of the study, from the store: LaTeX, Markdown, CSV in report/tables
	$(BIN)/python -m tsexp.report tables $(ARGS)

figures: freeze ## the figures of the study, from the store, in report/figures
	$(BIN)/python -m tsexp.report figures $(ARGS)

report: freeze ## tables, figures and the interactive page, from the store, in report/
	$(BIN)/python -m tsexp.report tables figures page $(ARGS)

published: .venv/.dev ## tables, figures and pages of docs/study and docs/company again, and tables on pages, from the frozen results in this repository
	for part in study company; do \
		$(BIN)/python -m tsexp.report tables figures page paths.frozen=docs/$$part/frozen paths.report=docs/$$part $(ARGS) || exit; \
	done
	$(BIN)/python -m cogapp -r -P -I docs -p 'import pages' README.md docs/t4.md docs/t4h.md docs/results.md docs/reproducing.md

ui: .venv/.done ## the MLflow UI on 127.0.0.1:5000; another store than this folder's, another port: STORE=path/mlflow.db PORT=5001
	@$(BIN)/python -m tsexp.ui '$(STORE)' --port '$(PORT)'

clean: ## remove the environment, caches and outputs; not the store
	rm -rf .venv .venv-oldest .import_linter_cache cache outputs site multirun/2* .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
