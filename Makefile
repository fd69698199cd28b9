# Everything a person types here. `make help` lists it.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null && \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && \
	echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
LETTA_VENV := .letta-venv
APP_SERVER_VENV := .app-server-venv
VAPI_TYPES_VENV := .vapi-types-venv
DOCS_VENV := .docs-venv
SHIP_VENV := .ship-venv
LITELLM_VENV := .litellm-venv
KILLS ?= 200
SECONDS ?= 600
CALLS ?= 200
# Tests at a time, on two cores. A fourth takes the cores that the rooms need to speak and hear in
# time.
JOBS ?= 3
LETTA ?= stand-in
JOURNAL ?= sqlite
REPLICAS ?= 1
ONLY ?=
# Slow to import; nothing of ours needs to phone home.
export DO_NOT_TRACK := 1
# The tests start some two hundred processes, and the installed packages are not compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup setup-dev speech letta-server app-server real-parts debian run test test-fast \
	slow check lint types fmt bench bench-litellm chaos soak lock clean docs cli-docs link-schema \
	dist vapi-demo

# A text that is too long for one line goes on in a second one that begins with the same target.
help: ## Show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' \
	  '$$1 == last {printf " %s", $$2; next} \
	  {printf "%s  make %-13s %s", end, $$1, $$2; last = $$1; end = "\n"} END {print ""}'

$(BIN)/uv: requirements/uv.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; none was found." \
	  "Install one, or say PYTHON=/path/to/python3." >&2; exit 1; }
	@echo "making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  -r requirements/uv.txt
	@touch $@

$(VENV)/.run: $(BIN)/uv requirements/run.txt pyproject.toml
	@echo "installing from requirements/run.txt"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/run.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/build.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements/dev.txt
	@echo "installing from requirements/dev.txt"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@touch $@

$(LETTA_VENV)/.installed: $(BIN)/uv requirements/letta-server.txt
	@echo "installing a real Letta server for the tests into $(LETTA_VENV) (about 1 GB)"
	@$(PYTHON) -m venv --clear $(LETTA_VENV)
	@$(BIN)/uv pip sync --quiet --python $(LETTA_VENV)/bin/python --require-hashes \
	  requirements/letta-server.txt
	@touch $@

$(APP_SERVER_VENV)/.installed: $(BIN)/uv requirements/app-server.txt
	@command -v git >/dev/null || \
	  { echo "the Letta App Server needs git, which is not installed" >&2; exit 1; }
	@echo "installing the Letta App Server into $(APP_SERVER_VENV)" \
	  "(a download of 79 MB, 300 MB on disk)"
	@$(BIN)/uv venv --quiet --clear --python $(PYTHON) $(APP_SERVER_VENV)
	@UV_HTTP_TIMEOUT=15 $(BIN)/uv pip sync --python $(APP_SERVER_VENV)/bin/python --require-hashes \
	  requirements/app-server.txt
	@touch $@

$(VAPI_TYPES_VENV)/.installed: $(BIN)/uv requirements/vapi-types.txt
	@echo "installing VAPI's own types for the tests into $(VAPI_TYPES_VENV)"
	@$(PYTHON) -m venv --clear $(VAPI_TYPES_VENV)
	@$(BIN)/uv pip sync --quiet --python $(VAPI_TYPES_VENV)/bin/python --require-hashes \
	  requirements/vapi-types.txt
	@touch $@

$(LITELLM_VENV)/.installed: $(BIN)/uv requirements/litellm.txt
	@echo "installing the LiteLLM proxy into $(LITELLM_VENV) (about 600 MB)"
	@$(PYTHON) -m venv --clear $(LITELLM_VENV)
	@$(BIN)/uv pip sync --quiet --python $(LITELLM_VENV)/bin/python --require-hashes \
	  requirements/litellm.txt
	@touch $@

$(DOCS_VENV)/.installed: $(BIN)/uv requirements/docs.txt
	@echo "installing what builds the documentation into $(DOCS_VENV)"
	@$(PYTHON) -m venv --clear $(DOCS_VENV)
	@$(BIN)/uv pip sync --quiet --python $(DOCS_VENV)/bin/python --require-hashes requirements/docs.txt
	@touch $@

$(SHIP_VENV)/.installed: $(BIN)/uv requirements/ship.txt
	@echo "installing the linters of ops/ and .github/ into $(SHIP_VENV) (about 220 MB)"
	@$(PYTHON) -m venv --clear $(SHIP_VENV)
	@$(BIN)/uv pip sync --quiet --python $(SHIP_VENV)/bin/python --require-hashes requirements/ship.txt
	@touch $@

setup: $(VENV)/.run ## Install what `make run` needs, from the lock file

setup-dev: $(VENV)/.dev ## Install what the tests and checks need

letta-server: $(LETTA_VENV)/.installed ## Install the real Letta server that the tests start

app-server: $(APP_SERVER_VENV)/.installed ## Install the Letta App Server
app-server: ## (Letta's current generation)

debian: ## Install the Debian packages that the tests use
debian: ## (redis-server, espeak-ng, git, systemd, chromium, postgresql, pgbouncer)
	@missing=""; command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	command -v espeak-ng >/dev/null || missing="$$missing espeak-ng"; \
	command -v git >/dev/null || missing="$$missing git"; \
	command -v systemd-analyze >/dev/null || missing="$$missing systemd"; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing="$$missing postgresql"; \
	ls /usr/sbin/pgbouncer >/dev/null 2>&1 || missing="$$missing pgbouncer"; \
	if [ -n "$$missing" ]; then \
	  as=""; [ "$$(id -u)" = 0 ] || as=sudo; \
	  echo "installing$$missing"; \
	  $$as apt-get update -qq && $$as env DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

$(VENV)/.speech: $(VENV)/.run requirements/speech.txt
	@echo "installing offline speech from requirements/speech.txt"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/speech.txt
	@touch $@

speech: $(VENV)/.speech ## Install speech that runs offline,
speech: ## for voice_worker.py without VOICE_STT and VOICE_TTS

run: $(VENV)/.run ## Start the sidecar with its page: no key, no account
	@case "$$LETTA_API_KEY$$LETTA_BASE_URL$$LETTA_APP_SERVER_URL $$SIDECAR_LETTA" in \
	  " "|" auto"|" app-server") \
	  $(MAKE) --no-print-directory app-server || \
	  echo "The Letta App Server could not be installed, for the reason above." \
	    "SIDECAR_LETTA=embedded does not try." >&2;; esac
	@if [ -n "$$LIVEKIT_URL" ] && [ -z "$$VOICE_PARTS" ] && \
	  { [ -z "$$VOICE_STT" ] || [ -z "$$VOICE_TTS" ]; }; then \
	  $(MAKE) --no-print-directory speech; fi
	@$(BIN)/sidecar run --restart

real-parts: $(VENV)/.dev $(LETTA_VENV)/.installed $(APP_SERVER_VENV)/.installed \
	$(VAPI_TYPES_VENV)/.installed $(DOCS_VENV)/.installed $(SHIP_VENV)/.installed debian

test: real-parts lint ## Style, and all tests on the real parts but the slow ones
	@$(BIN)/python -m pytest -n $(JOBS) --no-loadscope-reorder -m "not slow"

slow: real-parts ## The tests that `make test` leaves out
	@$(BIN)/python -m pytest -n $(JOBS) --no-loadscope-reorder -m slow

test-fast: $(VENV)/.dev ## The unit and contract tests that need no server
	@$(BIN)/python -m pytest -m "unit or (contract and not real_letta)" -q

check: lint types test-fast ## What to run before each commit

lint: $(VENV)/.dev ## Style, formatting and which room may import which
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/lint-imports --no-cache >/dev/null || $(BIN)/lint-imports --no-cache

types: $(VENV)/.dev ## Pyright, strict
	@$(BIN)/pyright

fmt: $(VENV)/.dev ## Format, and mend what can be mended
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

bench: $(VENV)/.dev ## Measure, against a baseline in the same run
bench: ## (ONLY=prompt_path|journal|delivery|idle|vapi|letta|successor)
	@$(BIN)/python -m benchmarks $(ONLY)

bench-litellm: $(VENV)/.dev $(LITELLM_VENV)/.installed
bench-litellm: ## Measure the VAPI endpoint beside the LiteLLM proxy, installed on demand
	@$(BIN)/python -m benchmarks litellm

chaos: $(VENV)/.dev ## Kill the sidecar and its workers KILLS times and look for lost,
chaos: ## doubled or misordered turns (LETTA=stand-in|classic|app-server JOURNAL=sqlite|postgres
chaos: ## REPLICAS=N)
	@$(BIN)/python -m tests.chaos.killloop --kills $(KILLS) --letta $(LETTA) --journal $(JOURNAL) \
	  --replicas $(REPLICAS)

soak: $(VENV)/.dev ## Hold CALLS live calls for SECONDS, with faults, and see whether anything grows
	@$(BIN)/python -m tests.chaos.soak --seconds $(SECONDS) --calls $(CALLS)

lock: $(BIN)/uv ## Renew the lock files from pyproject.toml and requirements/*.in
	@compile="$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes"; \
	compile="$$compile --no-emit-index-url --no-emit-find-links --no-header"; \
	$$compile requirements/uv.in -o requirements/uv.txt && \
	$$compile requirements/build.in -o requirements/build.txt && \
	$$compile requirements/vapi-types.in -o requirements/vapi-types.txt && \
	$$compile requirements/docs.in -o requirements/docs.txt && \
	$$compile requirements/ship.in -o requirements/ship.txt && \
	$$compile requirements/litellm.in -o requirements/litellm.txt && \
	$$compile requirements/app-server.in -o requirements/app-server.txt && \
	$$compile pyproject.toml -o requirements/worker.txt && \
	$$compile pyproject.toml --extra speech -o requirements/speech.txt && \
	$$compile pyproject.toml --extra server -o requirements/run.txt && \
	$$compile pyproject.toml --extra server --extra postgres -o requirements/postgres.txt && \
	$$compile pyproject.toml --extra server --extra postgres --extra speech --extra dev \
	  -o requirements/dev.txt

docs: $(DOCS_VENV)/.installed ## Build the documentation site into site/, with no broken link
	@NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict

cli-docs: $(VENV)/.run ## Write docs/cli.md anew from the commands
	@$(BIN)/python -m typer sidecar.cli utils docs --name sidecar --output docs/cli.md >/dev/null

link-schema: $(VENV)/.run ## Write sidecar/wire/link.schema.json anew from the frames of the link
	@$(BIN)/python -m sidecar.wire.schema

dist: $(VENV)/.run ## Build the wheel into dist/
	@rm -rf dist
	@$(BIN)/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python --out-dir dist .

vapi-demo: $(VENV)/.run ## Play two VAPI calls of one caller against a sidecar: no key needed
	@$(BIN)/python examples/vapi/demo.py

clean: ## Remove what was installed and built; the data directory stays
	@rm -rf $(VENV) $(LETTA_VENV) $(APP_SERVER_VENV) $(VAPI_TYPES_VENV) $(DOCS_VENV) $(SHIP_VENV) \
	  $(LITELLM_VENV) .run dist site build *.egg-info .pytest_cache .ruff_cache .hypothesis \
	  .import_linter_cache .screenshots
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
