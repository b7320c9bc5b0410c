# make book VENV=$CONDA_PREFIX uses an environment that exists already.
PYTHON ?= python3
VENV ?= .venv
PAGES ?=
SWEEP ?=
OPTIONS ?=
BIN := $(VENV)/bin
# The pages' networks are small: one thread is as fast, and does not wait for other work.
export OMP_NUM_THREADS ?= 1
READY := $(VENV)/.sparselib-ready

.DEFAULT_GOAL := help
.PHONY: help book test lint unit pages lab sweep bench refresh check clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */\1\t/' | expand -t 12

# Without a network an environment that already holds every pin is as good as a new one.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[book,test,sweep]" \
	|| $(BIN)/python -m pip install -q --no-index -c constraints.txt "sparselib[book,test,sweep]"
	touch $@

book: $(READY)  ## execute every page on the embedded data and build the book, strictly
	$(BIN)/python book/_tools/build.py

test: lint unit pages  ## everything that has to be green: lint, unit tests, the pages' numbers

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(READY)  ## unit tests, house rules, guards of the book
	$(BIN)/python -m pytest tests

pages: $(READY)  ## run every page and compare what it prints with what is stored
	$(BIN)/python -m pytest book --nbval --nbval-current-env \
	  --nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout 300

lab: $(READY)  ## open the pages in JupyterLab
	$(BIN)/jupyter lab book

sweep: $(READY)  ## run a page over a grid (SWEEP=book/csr/sweeps/table4.yml OPTIONS="--workers 2 --dry-run")
	@test -n "$(SWEEP)" || { echo "name a sweep, SWEEP=... one of:"; ls book/*/sweeps/*.yml; exit 2; }
	$(BIN)/python -m sparselib.sweep $(SWEEP) $(OPTIONS)

bench: $(READY)  ## measure the speed claims here, on a quiet machine; fails if one does not hold
	$(BIN)/python book/_tools/bench.py

refresh: $(READY)  ## execute pages in place, the one way to change outputs (PAGES=book/csr/format.ipynb)
	$(BIN)/python book/_tools/refresh.py $(PAGES)

check: $(READY)  ## links, anchors and a headless browser over the built book
	$(BIN)/python book/_tools/links.py _build/html
	BUILT_BOOK=_build/html $(BIN)/python -m pytest tests/test_browser.py

clean:  ## remove what was built; the environment stays
	rm -rf _build
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
