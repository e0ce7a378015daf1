# The commands that a newcomer needs. Each installs what is missing first, and does nothing twice.

PYTHON ?= python3
BIN := .venv/bin
UP ?=
CHAOS ?=
BASE ?= HEAD
BENCH ?=
LOAD ?=

.DEFAULT_GOAL := help
.PHONY: help install up test test-kubernetes chaos overload check format bench bench-compare load docs chart pictures system-packages

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

install: .venv/installed ## the virtual environment with everything that was tested together

.venv/installed: pyproject.toml constraints.txt .ci/install
	@.ci/install "$(PYTHON)" server,otel,dev,bench
	@touch $@ .venv/serves

.venv/serves: pyproject.toml constraints.txt .ci/install
	@.ci/install "$(PYTHON)" server
	@touch $@

.venv/documents: pyproject.toml constraints.txt .ci/install
	@.ci/install "$(PYTHON)" server,docs
	@touch $@

up: .venv/serves ## the whole system on this machine; UP="--port 9000 --shards 4" passes options on
	@exec $(BIN)/solowire up $(UP)

test: install system-packages ## all tests, three files at a time, real processes and a real named included; TEST="tests/router" chooses
	@$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder $(TEST)

test-kubernetes: install ## the chart in a cluster of its own, on this machine as root; its programs are built once, in an hour; TEST="-k killed"
	@$(BIN)/python -m tests.kubernetes $(TEST)

chaos: install ## kills, stops and cuts a running system, and proves that nobody missed anything; CHAOS="--seed 7 --runs 10"
	@$(BIN)/python -m tests.chaos $(CHAOS)

overload: install system-packages ## three times too much of everything, and what became of it: docs/overload.md (some fifteen minutes)
	@$(BIN)/python -m bench --page overload --out $(if $(BENCH),bench/results/overload.md,docs/overload.md) $(BENCH)

system-packages:
	@.ci/system-packages

check: install ## format, lint, types and layering; takes seconds
	@$(BIN)/ruff format --check -q .
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo >/dev/null || $(BIN)/lint-imports --no-logo
	@$(BIN)/pytest -q tests/test_layering.py

format: install ## put the sources into the one form
	@$(BIN)/ruff format -q .
	@$(BIN)/ruff check -q --fix .

bench: install system-packages ## the figures of docs/performance.md, measured again (some thirty-five minutes); BENCH="stream --quick" chooses
	@$(BIN)/python -m bench --out $(if $(BENCH),bench/results/bench.md,docs/performance.md) --json bench/results/bench.json $(BENCH)

bench-compare: install system-packages ## the same cases of another revision and of this one in turn: BASE=main BENCH="single stream"
	@$(BIN)/python -m bench.compare $(BASE) $(BENCH)

load: install ## users and publishers by locust against a running system; LOAD="--headless -u 100 -t 60s"
	@$(BIN)/python -m locust -f bench/locustfile.py --host http://127.0.0.1:8000 $(LOAD)

docs: .venv/documents ## the pages as a site in site/; docs/settings.md is made anew from the models
	@$(BIN)/python docs/make_settings.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict # with --quiet it would not see its own warnings

chart: install ## the chart's README and schema, from its values and the models, and the snapshots of its examples
	@$(BIN)/python docs/make_chart_pages.py
	@$(BIN)/python -m tests.helm.make_snapshots

pictures: docs/pictures/rooms.svg ## the pictures of docs/, from their text sources

docs/pictures/%.svg: docs/pictures/%.dot
	@command -v dot >/dev/null || .ci/system-packages graphviz
	@dot -Tsvg $< -o $@
