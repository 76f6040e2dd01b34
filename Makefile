# Two commands do everything on a fresh machine: `make pretrain` and `make test`.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Matrix products of small models gain nothing from more threads than cores; tests run one process per core instead.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

.PHONY: help env pretrain pretrain-long test soak lint types contracts docs bench bench-gpu benchmarks clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

env: $(READY)  ## the virtual environment in .venv, with the tested versions of constraints.txt

# The first of python3, python3.13, python3.12 that is new enough (pyenv reads .python-version), else uv.
$(READY): pyproject.toml constraints.txt
	@set -e; for p in python3 python3.12 python3.13 python; do \
	  if $$p -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then python=$$p; break; fi; done; \
	if [ -n "$$python" ]; then echo "Environment: $$($$python --version) in $(VENV)"; $$python -m venv --clear $(VENV); \
	elif command -v uv >/dev/null 2>&1; then echo "Environment: Python 3.12 through uv in $(VENV)"; uv venv --clear --seed --python 3.12 $(VENV); \
	else echo "No Python 3.12 or newer was found. Install one (https://www.python.org/downloads/, or: pyenv install 3.12) or uv (https://docs.astral.sh/uv/), then run make again." >&2; exit 1; fi
	@echo "Installing (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location -e ".[test]" -c constraints.txt
	@touch $@

pretrain: $(READY)  ## pretrain a small TerraFM on the simulated world (6 minutes on 2 cores); ends in a figure and a table
	$(BIN)/terrafm fit --config conf/pretrain.yaml --config conf/size/nano.yaml --config conf/data/simulated.yaml \
	  --config conf/hardware/cpu.yaml --config conf/quick.yaml

pretrain-long: $(READY)  ## the longer configuration of docs/results.md, seeds 0, 1 and 2 (about an hour each on 2 cores)
	for seed in 0 1 2; do $(BIN)/terrafm fit --config conf/pretrain.yaml --config conf/size/nano.yaml \
	  --config conf/data/simulated.yaml --config conf/hardware/cpu.yaml --config conf/quick.yaml --config conf/long.yaml \
	  --model.seed $$seed --seed_everything $$seed --trainer.logger.init_args.save_dir runs/long-$$seed || exit 1; done

test: lint types contracts  ## format, lint, types, import contracts and the test suite (offline, CPU)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not soak" -n $(CORES) --dist worksteal

soak: $(READY)  ## the long versions of the tests
	$(BIN)/python -m pytest -q -m soak

lint: $(READY)  ## ruff: lint and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY)  ## mypy
	$(BIN)/mypy

contracts: $(READY)  ## import-linter: layers, circles, what may import what
	$(BIN)/lint-imports

docs: $(READY)  ## build the documentation into site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]" -c constraints.txt
	$(BIN)/mkdocs build --strict

bench: $(READY)  ## on this machine: a training step's stages, the encoder's forward, packed tiles, and the loader
	$(BIN)/terrafm profile --config conf/pretrain.yaml --config conf/size/nano.yaml --config conf/data/simulated.yaml \
	  --config conf/hardware/cpu.yaml --config conf/quick.yaml
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.encoder
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.store
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.loader

bench-gpu: $(READY)  ## on a GPU: the training step of base and large, views, memory and scaling (runs/bench-gpu)
	BIN=$(BIN) benchmarks/gpu.sh

ROOT ?= data/bench
benchmarks: $(READY)  ## GEO-Bench, Copernicus-Bench and Landslide4Sense beside the published scores (ROOT=data/bench)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[bench]" -c constraints.txt
	$(BIN)/terrafm bench --config conf/bench/all.yaml --root $(ROOT)

clean:  ## remove what was built, not what was trained
	rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache src/*.egg-info
