# Two commands: make run, make test. Each sets up what it needs in .venv, once.

PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin

.PHONY: help run test integration style types cover clean

help:
	@echo "make run          serve the chat example on port $(PORT)"
	@echo "make test         run the tests that need nothing but Python"
	@echo "make integration  run all tests, also those with Chromium and Node.js where they are installed"
	@echo "make style types  check the code's style and its types"
	@echo "make cover        run the tests of the modules without I/O and show their coverage"
	@echo "make clean        remove what the others made"

run: .venv/.run
	@echo "The chat is at http://127.0.0.1:$(PORT)/  (Ctrl-C ends it)"
	@$(BIN)/gunicorn --worker-class gthread --threads 2 --bind 127.0.0.1:$(PORT) --log-level warning \
		--chdir examples/chat app:app

test: .venv/.test
	$(BIN)/python -m pytest -m "not slow"

integration: .venv/.dev
	$(BIN)/python -m pytest

style: .venv/.dev
	$(BIN)/flake8
	$(BIN)/isort --check-only --diff .

types: .venv/.dev
	$(BIN)/mypy

empty :=
space := $(empty) $(empty)
comma := ,
PURE := exceptions frames deflate messages protocol handshake
cover: .venv/.test
	WSTHREAD_SPEEDUPS=0 $(BIN)/coverage run -m pytest --quiet $(PURE:%=tests/test_%.py)
	$(BIN)/coverage run --append -m pytest --quiet $(PURE:%=tests/test_%.py)
	$(BIN)/coverage report --fail-under=100 --include=$(subst $(space),$(comma),$(PURE:%=wsthread/%.py))

# One stamp per extra of setup.cfg. The egg-link makes later edits of the code take effect by themselves.
.venv/.%: setup.cfg setup.py pyproject.toml wsthread/_speedups.c | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv build dist *.egg-info .coverage .mypy_cache .pytest_cache .hypothesis
