# make demo    environment and the main job: seven recommenders on one scoreboard
# make serve   server of the demo's models at http://127.0.0.1:8000, after the demo if there is none; PORT=8000
# make test    environment with the dev extra and the fast tests
# make check   lint, types, fast tests
# make docs    environment with the docs extra and the documentation as a site in build/site
#
# DEMO         options of nextitem demo: DEMO='--minutes-per-model 0.5' trains each model for half a minute at most
# PYTHON       the interpreter that makes .venv (3.11 or newer)
# TORCH_INDEX  address of a package index with another build of torch (CPU only, another CUDA version)

PYTHON ?= python3
PORT ?= 8000
DEMO ?=
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
INPUTS := pyproject.toml constraints.txt

.PHONY: demo serve test slow lint types check docs clean

demo: $(VENV)/.installed
	$(BIN)/nextitem demo --out runs/demo --overwrite $(DEMO)

# The first model answers everybody; the others answer requests that name them.
serve: $(VENV)/.installed-serve
	@test -f runs/demo/runs/depth-decoder/recipe.toml || $(MAKE) demo
	$(BIN)/nextitem serve $(addprefix runs/demo/runs/,depth-decoder sasrec cascade tiger) --weight depth-decoder=1 \
	  --store sqlite:///runs/demo/events.db --impressions runs/demo/impressions --port $(PORT)

# Two workers of one thread each: two of two threads would fight over two cores.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --durations=10

slow: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu" -n 2 --dist loadfile --durations=20

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

check: lint types test

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site

# torch comes first and pinned: unpinned, another package would draw in the newest build and its CUDA packages.
$(VENV)/.torch:
	@echo "Making $(VENV) (a few minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(INPUTS)
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-serve: $(VENV)/.torch $(INPUTS)
	$(PIP) --constraint constraints.txt --editable '.[serve]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(VENV)/.torch $(INPUTS)
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-serve

$(VENV)/.installed-docs: $(VENV)/.torch $(INPUTS)
	$(PIP) --constraint constraints.txt --editable '.[docs]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
