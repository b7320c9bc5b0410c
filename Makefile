# make book VENV="$CONDA_PREFIX" uses an environment that exists already.
PYTHON ?= python3
VENV ?= .venv
PAGES ?=
SWEEP ?=
OPTIONS ?=
OUT ?= _build/gpu
BIN := $(if $(filter Windows_NT,$(OS)),$(VENV)/Scripts,$(VENV)/bin)
PY = "$(BIN)/python"
EXTRAS := book,test,sweep
READY := $(VENV)/.sparselib-ready
# The pages' networks are small: one thread is as fast, and does not wait for other work.
export OMP_NUM_THREADS ?= 1
# tests/conftest.py says how many processes that is; what shares a costly fixture stays in one
PARALLEL := -n auto --dist loadgroup
# what does not wait for others: one process per core
PER_CORE := -n logical --maxprocesses 8
NBVAL := --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout 300

.DEFAULT_GOAL := help
.PHONY: help environment book test quick lint unit pages lab sweep bench refresh check pdf \
  gpu compat constraints mutants clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */\1\t/' | expand -t 13

# The path may hold spaces, which no target of make can; so the shell compares the times.
# Without a network an environment that already holds every pin is as good as a new one.
environment:
	@test -e "$(READY)" && test "$(READY)" -nt pyproject.toml \
	  && test "$(READY)" -nt constraints.txt || { \
	  { test -x $(PY) || $(PYTHON) -m venv "$(VENV)"; } \
	  && { $(PY) -m pip install -q --no-compile -c constraints.txt -e ".[$(EXTRAS)]" \
	    || $(PY) -m pip install -q --no-compile --no-index -c constraints.txt "sparselib[$(EXTRAS)]"; } \
	  && $(PY) -m pip check && touch "$(READY)"; }

book: environment  ## execute every page on the embedded data and build the book, strictly
	$(PY) book/_tools/build.py

test: lint unit pages  ## everything that has to be green: lint, unit tests, the pages' numbers

quick: lint  ## lint, and the unit tests that are not slow
	$(PY) -m pytest tests -q -m "not slow" $(PER_CORE) --dist loadgroup

lint: environment  ## ruff and mypy
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	$(PY) -m mypy

unit: environment  ## unit tests, house rules, guards of the book
	$(PY) -m pytest tests -q $(PARALLEL) --durations 20

pages: environment  ## run every page and compare what it prints with what is stored
	$(PY) -m pytest book -q $(PER_CORE) --dist loadfile $(NBVAL) --keep-executions

lab: environment  ## open the pages in JupyterLab
	$(PY) -m jupyter lab book

sweep: environment  ## run a page over a grid (SWEEP=book/csr/sweeps/table4.yml OPTIONS="--workers 2 --dry-run")
	@test -n "$(SWEEP)" || { echo "name a sweep, SWEEP=... one of:"; ls book/*/sweeps/*.yml; exit 2; }
	$(PY) -m sparselib.sweep "$(SWEEP)" $(OPTIONS)

bench: environment  ## measure the kernels here, on a quiet machine, as shares of its roof
	$(PY) book/_tools/bench.py

gpu:  ## measure on a GPU, without installing (OUT=folder; OPTIONS=--rehearse to go through it on a CPU)
	$(PYTHON) book/_tools/gpu_report.py $(OUT) $(OPTIONS)

refresh: environment  ## execute pages in place, the one way to change outputs (PAGES=book/csr/format.ipynb)
	$(PY) book/_tools/refresh.py $(PAGES)

check: environment  ## links, anchors and a headless browser over the built book
	$(PY) book/_tools/links.py _build/html
	BUILT_BOOK=_build/html $(PY) -m pytest -q -n 2 -m built tests/test_browser.py tests/test_lab.py

pdf: book  ## print the whole book into _build/sparselib.pdf, with a headless browser
	$(PY) book/_tools/pdf.py _build/html _build/sparselib.pdf

compat: environment  ## core tests against the oldest and newest torch, and that of GPU images
	$(PY) book/_tools/compat.py $(OPTIONS)

constraints:  ## pin versions that fit together in constraints.txt (OPTIONS=--upgrade for the newest)
	$(PYTHON) book/_tools/constraints.py "$(EXTRAS),prune,export" $(OPTIONS)

mutants: environment  ## break random lines of the library, and see that a test fails (OPTIONS="--count 30 --seed 1")
	$(PY) book/_tools/mutants.py $(OPTIONS)

clean:  ## remove what was built; the environment stays
	rm -rf _build
	find . -name __pycache__ -not -path './.*' -prune -exec rm -rf {} +
