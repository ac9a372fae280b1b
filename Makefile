# Two commands: make run, make test. Each sets up what it needs in .venv, once.

PYTHON ?= python3
PORT ?= 8000
EXAMPLE ?= chat
WORKERS ?= 1
REDIS ?=
BIN := .venv/bin

.PHONY: help run run-django test integration matrix style types cover fuzz sanitize conformance bench bench-connections
.PHONY: bench-slow bench-sleepers bench-connecting bench-tls bench-hostile bench-bus docs docs-options test-all dist clean

help:
	@echo "make run          serve the chat example on port $(PORT); WORKERS=4, REDIS=redis://127.0.0.1"
	@echo "                  EXAMPLE=jobs, dashboard, terminal or tokens serves another one, see docs/examples.rst"
	@echo "make run-django   serve the chat example for Django on port $(PORT); WORKERS=4"
	@echo "make test         run the tests; those with Chromium or Node.js only where these are installed"
	@echo "make integration  run the tests that take longer"
	@echo "make matrix       run the tests of the servers on old and new versions of gunicorn, Werkzeug and Flask"
	@echo "make test-all     run the tests on each Python from 3.10 on that is here; ARGS=-kflask for some of them"
	@echo "make style types  check the code's style and its types"
	@echo "make cover        run the tests of each module in one process and show their coverage"
	@echo "make fuzz         fuzz the parser, the handshake and the C extension with atheris; RUNS=10000000 for more than a minute of it"
	@echo "make sanitize     run the tests of the C extension with ASan, UBSan and TSan, and random calls of it"
	@echo "make conformance  run the Autobahn test suite; it needs Python 2.7; CASES='1.* 7.*' for some of it"
	@echo "make bench        compare with other servers, half an hour; ARGS='--rounds 1 --seconds 0.5', ARGS=--help"
	@echo "make bench-connections bench-slow   hold 10,000 connections; broadcast while somebody does not read"
	@echo "make bench-sleepers   ping 2,000 connections whose handlers sleep, and close half of them"
	@echo "make bench-connecting   measure what a WebSocket costs from connecting to closing, in plain GETs"
	@echo "make bench-tls    measure what TLS costs"
	@echo "make bench-bus    measure how messages get from worker to worker, with and without Redis"
	@echo "make bench-hostile   measure what peers that mean harm take, and cost the others"
	@echo "make docs         build the documentation; its first page is build/docs/index.html"
	@echo "make dist         build the source distribution and wheels in dist/, install each and try it"
	@echo "make docs-options write the pages of the options and of the command line from their definitions"
	@echo "make clean        remove what the others made"

# The terminal prints its address itself, for it has a token.
run: .venv/.run $(if $(REDIS),.venv/.redis)
	$(if $(filter terminal,$(EXAMPLE)),,@echo "The $(if $(filter chat,$(EXAMPLE)),,example )$(EXAMPLE) is at http://127.0.0.1:$(PORT)/  (Ctrl-C ends it)")
	@CHAT_REDIS="$(REDIS)" $(BIN)/gunicorn --worker-class gthread --threads 2 --workers $(WORKERS) \
		--bind 127.0.0.1:$(PORT) --log-level warning --chdir examples/$(EXAMPLE) app:app \
		--config $(firstword $(wildcard examples/$(EXAMPLE)/gunicorn.conf.py) examples/chat/gunicorn.conf.py)

run-django: .venv/.run-django
	@$(BIN)/python examples/django_chat/manage.py migrate --verbosity 0
	@echo "The chat is at http://127.0.0.1:$(PORT)/  (Ctrl-C ends it)"
	@$(BIN)/gunicorn --worker-class gthread --threads 2 --workers $(WORKERS) --bind 127.0.0.1:$(PORT) \
		--log-level warning --config examples/chat/gunicorn.conf.py --chdir examples/django_chat chat.wsgi

test: .venv/.test
	$(BIN)/python -m pytest -m "not slow"

NODE_MODULES := tests/node/node_modules/.package-lock.json
integration: .venv/.dev $(if $(shell command -v npm),$(NODE_MODULES))
	$(BIN)/python -m pytest -m slow

# It may fail, without a network: the tests that need the modules say so then and are skipped.
$(NODE_MODULES): tests/node/package.json
	-cd tests/node && npm install --no-audit --no-fund --no-package-lock --loglevel=error
	-@touch -c $@

# VERSIONS=oldest: only the oldest of each; the newest are in .venv. PYTHON=python3.13: with another Python.
VERSIONS ?= all
matrix:
	$(PYTHON) tests/matrix.py $(VERSIONS)

# One Python after another, each with an environment of its own below build/test-all.
test-all:
	$(PYTHON) tests/pythons.py $(ARGS)

dist: .venv/.dist
	$(BIN)/python tests/distributions.py

style: .venv/.dev
	$(BIN)/flake8
	$(BIN)/isort --check-only --diff .

types: .venv/.dev
	$(BIN)/mypy

cover: .venv/.test
	$(BIN)/python tests/cover.py

# Corpora and inputs that failed are in build/fuzz; a corpus grows from run to run.
fuzz: .venv/.fuzz
	$(BIN)/python tests/fuzz/fuzz_handshake.py -runs=$(or $(RUNS),50000)
	$(BIN)/python tests/fuzz/fuzz_parser.py -runs=$(or $(RUNS),200000)
	$(BIN)/python tests/fuzz/fuzz_handover.py -runs=$(or $(RUNS),100000)
	$(BIN)/python tests/fuzz/fuzz_speedups.py -runs=$(or $(RUNS),20000)

.venv/.fuzz: setup.cfg pyproject.toml | .venv/bin/python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[fuzz]" || { \
		echo "make fuzz needs atheris. PyPI has it for CPython 3.10 to 3.14 on Linux on x86-64; elsewhere it has to be" \
			"compiled with Clang and its libFuzzer. This is $$($(BIN)/python -VV), $$(uname -sm)." >&2; exit 1; }
	@touch $@

# ARGS=tests/test_chaos.py for other tests. Copies of the package with their extensions are in build/sanitize.
sanitize: .venv/.test
	$(BIN)/python tests/sanitize.py $(ARGS)

conformance: .venv/.test
	$(BIN)/python tests/conformance.py

# What an installation is built from; other code takes effect by itself.
BUILT_FROM := setup.cfg setup.py pyproject.toml wsthread/_speedups.c wsthread/gate.h

# They compare libraries that nobody else needs, so they have an environment of their own. Results are in build/bench.
BENCH := build/bench/venv
bench: $(BENCH)/.bench
	$(BENCH)/bin/python benchmarks/compare.py $(ARGS)

# It needs none of the others' servers.
bench-hostile: .venv/.run
	$(BIN)/python benchmarks/hostile.py $(ARGS)

bench-connections bench-slow bench-sleepers bench-connecting bench-tls bench-bus: bench-%: $(BENCH)/.bench
	$(BENCH)/bin/python benchmarks/$*.py $(ARGS)

$(BENCH)/.bench: $(BUILT_FROM)
	@command -v $(firstword $(CC)) >/dev/null || { \
		echo "The benchmarks need a C compiler, and there is no $(firstword $(CC)) (Debian: apt-get install gcc" \
			"libc6-dev). CC=clang takes another one." >&2; exit 1; }
	$(PYTHON) -m venv $(BENCH)
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]" || { \
		echo "The servers to compare with could not be installed. On PyPI they are for the newest versions of CPython" \
			"on Linux; this is $$($(PYTHON) -VV), $$(uname -sm)." >&2; exit 1; }
	@touch $@

docs: .venv/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -n docs build/docs
	@echo "The documentation is build/docs/index.html"

docs-options: .venv/.run
	$(BIN)/python docs/options.py
	$(BIN)/python docs/commands.py

# One stamp per extra of setup.cfg. The egg-link makes later edits of the code take effect by themselves.
.venv/.%: $(BUILT_FROM) | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv build dist tests/node/node_modules *.egg-info .coverage .mypy_cache .pytest_cache .hypothesis
