# Arriero. `make up` and `make test` are the two commands; both set themselves up with Python 3.11+ and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help up test e2e check faults schemathesis fmt lock clean
help: ## show these targets
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9]+):.*## /\1\t/' | expand -t 10

# Whatever MAKEFLAGS say, the installs below never resolve anything: every version and hash stands in the lock.
$(VENV)/.runtime: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Arriero needs Python 3.11 or newer; say make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || { echo "setting up $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing locked dependencies"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	@echo "installing locked development tools"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes --no-deps -r requirements-dev.lock
	@touch $@

up: $(VENV)/.runtime ## start everything on this machine and stream a first answer (ARGS="--help" for options)
	@exec $(BIN)/arriero up $(ARGS)

test: $(VENV)/.dev ## run all tests
	@echo "running the tests, two at a time; they start servers of their own on free ports (a part: make test ARGS=tests/router)"
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

check: $(VENV)/.dev ## lint, format, types, import rules
	@echo "lint";         $(BIN)/ruff check --quiet .
	@echo "format";       $(BIN)/ruff format --quiet --check . || { echo "make fmt formats"; exit 1; }
	@echo "types";        $(BIN)/mypy
	@echo "import rules"; PYTHONPATH=. $(BIN)/lint-imports --no-logo

faults: $(VENV)/.dev ## kill and freeze everything under load, check what clients saw, write docs/reliability.md (ARGS="--help")
	@$(BIN)/python -m tests.faults $(ARGS)

schemathesis: $(VENV)/.dev ## call every operation of the OpenAPI documents with what fits and what does not (ARGS="--help")
	@$(BIN)/python -m tests.openapi $(ARGS)

fmt: $(VENV)/.dev ## format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: $(VENV)/.dev ## resolve pyproject.toml anew into the two locks
	@$(BIN)/uv pip compile -q --upgrade --universal --generate-hashes --no-header --python-version 3.11 pyproject.toml --group build -o requirements.lock
	@$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 pyproject.toml --group build --group dev -c requirements.lock -o requirements-dev.lock

clean: ## remove the virtual environment and caches (state under .arriero stays)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
