# `make` lists what there is. Needs make, git and Python 3.11-3.14 (on Debian and Ubuntu with python3-venv).
# uv, which makes the environment from uv.lock, is fetched if the machine has none.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help

PORT ?= 3000
NUM_DAMAGES ?= 1000
KILLS_A_STEP ?= 2
PYTHONS := >=3.11,<3.15
UV_WANTED := uv>=0.9,<1
SYNCED := .venv/.synced
STACK_SYNCED := .venv/.synced-stack
SETTINGS ?= docker/stack.env
DEBIAN_BASE := localhost/debian-python:bookworm
IMAGE_OPTIONS ?=
SOURCES := geokr_core geokr_assets docker tests
# What starts processes that import torch, MLflow or Dagster keeps what Python compiled, whatever the shell says.
COMPILED := PYTHONDONTWRITEBYTECODE=
# The oldest releases: what runs the tests, and all tests but those of the repository, the browser and the stack.
MINIMUM := .venv-minimum
MINIMUM_TOOLS := 'pytest>=8.4' 'pytest-timeout>=2.4' 'pytest-xdist>=3.6' 'hypothesis>=6.130' 'exactextract>=0.2.2'
MINIMUM_TESTS ?= tests --ignore tests/project --ignore tests/browser --ignore tests/stack
# By file, so that what the tests of a file share is made in one of the two processes only.
SPREAD := -n 2 --dist loadfile
TYPES := mypy && lint-imports --no-logo --no-cache

# The tools are called by name, also by DVC's stages: the project's environment comes first.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export UV_PYTHON_DOWNLOADS ?= never
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

# Prints the path of a uv that works: from PATH, from pip's folder of the user, or our own. Nothing if there is none.
FIND_UV = for uv in "$$(command -v uv || true)" "$$(python3 -m site --user-base 2>/dev/null || true)/bin/uv" "$(CURDIR)/.uv-venv/bin/uv"; do \
	if [ -n "$$uv" ] && "$$uv" --version >/dev/null 2>&1; then echo "$$uv"; break; fi; done

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: setup ## run the whole chain on a small generated world, offline, and write a report
	@$(COMPILED) geokr run

.PHONY: test
test: style ## format, lint, types and every test that is quick and needs no GPU
	@mkdir -p dist; ($(TYPES)) >dist/types.log 2>&1 & types=$$!; status=0; \
	$(COMPILED) OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} pytest $(SPREAD) -m "not slow and not gpu" --durations=15 || status=$$?; \
	wait $$types || status=$$?; cat dist/types.log; exit $$status  # types are checked on one core, beside the tests

.PHONY: test-slow
test-slow: setup ## the tests left out by `make test`: minutes long, or in need of a GPU
	@$(COMPILED) pytest -m "slow or gpu" --durations=15

.PHONY: test-minimum
test-minimum: setup ## the library's tests at the oldest releases that pyproject.toml allows (downloads some 5 GB once)
	@uv="$$($(FIND_UV))"; mkdir -p dist; \
	"$$uv" pip compile --quiet --resolution lowest-direct --extra all -o dist/minimum.txt pyproject.toml; \
	[ -x $(MINIMUM)/bin/python ] || "$$uv" venv --quiet $(MINIMUM); \
	"$$uv" pip install --quiet --python $(MINIMUM) -r dist/minimum.txt -c dist/minimum.txt $(MINIMUM_TOOLS) -e .
	@export PATH="$(CURDIR)/$(MINIMUM)/bin:$$PATH"; $(COMPILED) OMP_NUM_THREADS=1 pytest $(SPREAD) -m "not slow and not gpu" $(MINIMUM_TESTS)

.PHONY: reliability
reliability: setup ## put every promise of docs/reliability.md to the test and write its figures (hours; NUM_DAMAGES=60 for fewer)
	@status=0; GEOKR_NUM_DAMAGES=$(NUM_DAMAGES) pytest -q -n 0 -m "not gpu" -o junit_family=xunit1 --junitxml=dist/reliability.xml \
	  $$(python docs/reliability.py --tests) || status=$$?; \
	python docs/reliability.py dist/reliability.xml; exit $$status

.PHONY: ui
ui: setup ## open the Dagster UI (PORT=3000) with the daemon beside it
	@$(COMPILED) DAGSTER_HOME="$(CURDIR)/.dagster_home" exec python -m geokr_assets.ui "$(PORT)"

.PHONY: stack
stack: $(STACK_SYNCED) ## start the production stack as processes, behind its guard (docker/README.md; SETTINGS=file for others)
	@PYTHONPATH=docker exec python -m stack up --settings "$(SETTINGS)"

.PHONY: stack-secrets
stack-secrets: $(STACK_SYNCED) ## make the secret files of the stack that are missing
	@PYTHONPATH=docker python -m stack secrets --settings "$(SETTINGS)"

.PHONY: pin-images
pin-images: $(SYNCED) ## write into the settings which digest each image of compose has today (needs skopeo and the registries)
	@PYTHONPATH=docker python -m stack pin-images --settings "$(SETTINGS)"

# `docker build` does the same where a registry has python:3.12-slim-bookworm; this base has the Python of the same Debian, 3.11.
.PHONY: image
image: ## build the image with podman where no registry is in reach, on a base of Debian packages (root; 45 GB for a while)
	@podman image exists $(DEBIAN_BASE) || mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates bookworm - \
	  | podman import --quiet - $(DEBIAN_BASE)
	@podman build --isolation=chroot --network=host $(IMAGE_OPTIONS) --build-arg BASE=$(DEBIAN_BASE) -f docker/Dockerfile -t geokr:0.1.0 .

.PHONY: test-stack
test-stack: $(STACK_SYNCED) ## the stack's tests: guard, login, the chain through it, a backfill over Celery (needs Debian packages, half an hour)
	@$(COMPILED) pytest -n 0 tests/stack/test_guard.py tests/stack/test_processes.py tests/stack/test_stack.py tests/stack/test_celery.py tests/stack/test_message_broker.py --durations=15

.PHONY: test-faults
test-faults: $(STACK_SYNCED) ## kill, stop, starve and fill up what runs, and compare the end with an undisturbed one (hours; KILLS_A_STEP=2)
	@$(COMPILED) GEOKR_KILLS_A_STEP=$(KILLS_A_STEP) pytest -n 0 tests/stack/test_faults.py tests/stack/test_killed_workers.py tests/stack/test_terminated.py \
	  tests/stack/test_at_once.py tests/stack/test_object_store.py tests/stack/test_clock.py tests/stack/test_upgrade.py tests/assets/test_training_processes.py tests/assets/test_lost_runs.py

.PHONY: lint
lint: style types ## check format, style, types and who imports whom; changes nothing

.PHONY: style
style: setup
	@ruff format --check .
	@ruff check .

.PHONY: types
types: setup
	@$(TYPES)

.PHONY: format
format: setup ## bring the code into its format and mend what can be mended by itself
	@ruff format .
	@ruff check --fix .

.PHONY: reference
reference: setup ## write what the documents take from the code: parameters, commands, file formats, architecture
	@geokr parameters > docs/parameters.md
	@python docs/reference.py

.PHONY: docs
docs: setup ## build the site of the documents into dist/docs, offline; executes its tutorials (minutes) and takes warnings for errors
	@sphinx-build -W --keep-going -q -b html -d dist/doctrees docs dist/docs
	@echo "The site: file://$(CURDIR)/dist/docs/index.html"

.PHONY: screens
screens: setup ## take the pictures of Dagster and MLflow that the documents show, from a finished demo (needs chromium)
	@python docs/screens.py

.PHONY: gpu-budget
gpu-budget: setup ## on a machine with a GPU: images/s, MFU, projected hours, and 5,000 steps of three methods (real scenes, some minutes)
	@geokr bench pretrain
	@geokr run --until levir-kr --params params/budget_resnet18.yaml
	@geokr pretrain --params params/budget_resnet18.yaml

.PHONY: bench
bench: setup ## measure speed against the limits of docs/benchmarks.md
	@geokr bench

.PHONY: audit
audit: setup ## what the installation is made of, into dist/: bill of materials (CycloneDX), licences, advisories
	@uv="$$($(FIND_UV))"; python docs/audit.py "$$uv"

.PHONY: clean
clean: ## remove caches, the generated world and what the chain made from it; never raw data, tracking or the environment
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis dist data/world data/store
	@find $(wildcard $(SOURCES)) -type d -name __pycache__ -prune -exec rm -rf {} +

.PHONY: setup
setup: $(SYNCED) ## make or refresh the environment in .venv (the other targets do this themselves)

# Only when the lock or the project file changed: then uv is looked for, and brought if need be.
$(SYNCED): pyproject.toml uv.lock
	@$(MAKE) --no-print-directory uv
	@uv="$$($(FIND_UV))"; \
	"$$uv" python find --quiet '$(PYTHONS)' >/dev/null 2>&1 || { \
	  echo "No Python 3.11 to 3.14 was found, and GeoKR needs one." >&2; \
	  echo "Install it (Debian 12 and 13, Ubuntu 24.04: apt-get install python3 python3-venv)," >&2; \
	  echo "or, where the network allows, let uv fetch one: $$uv python install 3.12" >&2; exit 1; }; \
	echo "Making the environment in .venv, exactly as locked (seconds from a cache; minutes and some 7 GB on a new machine) …" >&2; \
	started=$$SECONDS; "$$uv" sync --frozen --all-groups --no-group stack --extra all --quiet; \
	.venv/bin/python docs/plots_page.py; .venv/bin/dvc config --quiet --local plots.html_template plots.html; \
	echo "The environment is ready ($$((SECONDS - started)) s)." >&2
	@touch $@

# What the stack needs beyond that: drivers, Celery, an object store.
$(STACK_SYNCED): $(SYNCED)
	@uv="$$($(FIND_UV))"; "$$uv" sync --frozen --inexact --all-groups \
	  --extra all --extra production --extra celery --quiet
	@touch $@

# pip first; where it refuses (externally managed Python, no pip, a virtual environment), a venv of our own.
.PHONY: uv
uv:
	@if [ -n "$$($(FIND_UV))" ]; then exit 0; fi; \
	command -v python3 >/dev/null || { echo "Neither uv nor python3 was found: install Python 3.11-3.14 first." >&2; exit 1; }; \
	echo "uv was not found: installing it (pip, or a private .uv-venv)."; \
	python3 -m pip install --user --quiet '$(UV_WANTED)' 2>/dev/null || { \
	  python3 -m venv .uv-venv && printf '*\n' > .uv-venv/.gitignore && .uv-venv/bin/pip install --quiet '$(UV_WANTED)'; } || { \
	  rm -rf .uv-venv; \
	  echo "uv could not be installed. On Debian and Ubuntu: apt-get install python3-venv; or put uv on PATH yourself." >&2; exit 1; }; \
	[ -n "$$($(FIND_UV))" ] || { echo "uv was installed but cannot be started: put it on PATH yourself." >&2; exit 1; }
