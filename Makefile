# make help lists the targets. Everything runs inside .venv, made from pyproject.toml and constraints.txt.
SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
PORT ?= 8501
BASE_PYTHON ?= python3
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help demo test check lint types audit torture cluster-check install install-dev model browser docs docs-check bench screenshots clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

demo: install model ## install, fetch the default model, and open the dashboard on http://localhost:8501 (PORT overrides)
	@echo "DCES Lab is at http://localhost:$(PORT) (Ctrl-C ends the dashboard, not the runs)"
	@exec $(VENV)/bin/streamlit run app.py --server.port $(PORT) --server.headless true

test: install-dev browser ## everything that the tests need, then lint, types and all tests
	@$(PYTHON) -m dces_core.cli models pull
	@$(MAKE) --no-print-directory lint types
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --maxprocesses 4 --dist loadfile

check: install-dev ## lint, types and the fast tests, under 2 minutes
	@$(MAKE) --no-print-directory lint types
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --dist worksteal -m "not slow and not browser"

lint: ## ruff: format and rules
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

types: ## mypy, strict on dces_core
	$(VENV)/bin/mypy

torture: install-dev browser ## kill runs, fail disks, crowd the server, lie to parsers; write docs/reliability.md (an hour)
	PYTHONPATH=.:tests $(PYTHON) -m torture --out docs/reliability.json --page docs/reliability.md

cluster-check: install-dev ## two nodes of a Ray cluster on this machine, one loses its power (root, the extra `ray`, 5 minutes)
	PYTHONPATH=.:tests $(PYTHON) -m torture --only cluster

audit: install-dev ## installed versions, licences, known weaknesses
	@$(PYTHON) .ci/audit.py

install: $(VENV)/installed ## make .venv and install the product
install-dev: $(VENV)/installed-dev

$(VENV)/installed: pyproject.toml constraints.txt
	@$(BASE_PYTHON) .ci/setup_env.py
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt
	@$(BASE_PYTHON) .ci/setup_env.py --dev
	@touch $@ $(VENV)/installed

$(VENV)/installed-bench: pyproject.toml constraints.txt
	@$(BASE_PYTHON) .ci/setup_env.py --dev --bench
	@touch $@ $(VENV)/installed $(VENV)/installed-dev

model: install ## fetch, verify and convert the default model (once)
	@$(PYTHON) -m dces_core.cli models pull

browser: install-dev ## a Chromium for the browser tests: Debian's package as root, Playwright's own elsewhere
	@if command -v chromium >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq chromium >/dev/null; \
	else $(PYTHON) -m playwright install chromium; fi

docs: install-dev ## generate docs/settings.md from the settings, docs/api.md from the docstrings
	@$(PYTHON) -m dces_core.settings > docs/settings.md.new
	@mv docs/settings.md.new docs/settings.md
	@$(PYTHON) -m dces_core.reference > docs/api.md.new
	@mv docs/api.md.new docs/api.md

docs-check: install-dev ## run every documented command, the long ones too (an hour)
	DCES_DOCS_LONG=1 $(PYTHON) -m pytest tests/test_docs.py

bench: $(VENV)/installed-bench model ## measure the engine against its peers and write the table of docs/performance.md (an hour)
	$(PYTHON) -m dces_core.cli bench --out docs/performance.json
	@$(PYTHON) -m dces_core.cli bench --markdown docs/performance.md --out docs/performance.json

screenshots: install-dev browser ## make docs/images from the recorded run
	@$(PYTHON) .ci/screenshots.py

clean: ## remove what the targets made (runs stay)
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
