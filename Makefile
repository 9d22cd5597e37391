# Two commands matter: `make run` serves the page and the API, `make test` runs the whole suite.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# HOST and PORT count only as `make run HOST=... PORT=...`: shells export HOST for other ends, and EIS_HOST is the setting.
flag = $(if $(findstring command,$(origin $(1))),--$(2) $($(1)))
# The suite runs in two processes, a file of tests in one of them, each with one thread for torch. Pages that a process
# gave back are asked for again by the next forward of a tiny model: it keeps up to 32 MB of them.
PROCESSES ?= 2
KEPT := 33554432
QUICK := OMP_NUM_THREADS=1 MALLOC_TRIM_THRESHOLD_=$(KEPT) MALLOC_TOP_PAD_=$(KEPT) MALLOC_MMAP_THRESHOLD_=$(KEPT)
SPREAD := -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: run test parity prove demo bench lint docs clean help

help:  ## what each target does
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

run: $(VENV)/.installed  ## install and serve on http://127.0.0.1:7860
	$(BIN)/eis serve $(call flag,HOST,host) $(call flag,PORT,port)

test: $(VENV)/.installed-test  ## the whole suite, as CI runs it; PROCESSES=0 for one test after another
	$(QUICK) $(BIN)/python -m pytest tests $(SPREAD) --durations=25 $(ARGS)

parity: $(VENV)/.installed-test  ## identity against the references' numbers; EIS_PARITY=DIR takes another folder's cases
	@$(BIN)/python -m pytest tests/parity -q $(ARGS)

prove: $(VENV)/.installed-test  ## the long proofs; resumable; figures go into docs/proofs.md
	$(BIN)/python -m tests.prove $(ARGS)

demo: $(VENV)/.installed-test  ## a tour over REST; writes artifacts/tour.png
	$(BIN)/python examples/tour.py $(ARGS)

bench: $(VENV)/.installed-test  ## figures of the service on this machine; both sides in one run
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.installed-test  ## write the pages that are derived from the code
	$(BIN)/python docs/generate.py

lint: $(VENV)/.installed-test
	$(BIN)/python -m ruff check app tests benchmarks examples docs

clean:  ## remove the virtual environment and what builds left
	rm -rf $(VENV) build *.egg-info artifacts

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is older. Try: make PYTHON=python3.11 run"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "No venv module: on Debian, apt-get install python3-venv"; rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	@echo "Installing (torch is large: about 7 GB on disk, a few minutes)..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml
	@echo "Installing with what the suite needs (torch is large: about 7 GB on disk, a few minutes)..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(VENV)/.installed
