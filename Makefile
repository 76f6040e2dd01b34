# Two commands do everything on a fresh machine: `make pretrain` and `make test`.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Matrix products of small models gain nothing from more threads than cores; tests run one process per core instead.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
# One more than cores: a fifth of the suite's time is waiting, for servers, locks and processes that are killed.
TESTERS := $(shell echo $$(( $(CORES) + 1 )))

.PHONY: help env pretrain pretrain-long real test soak lint types contracts docs floors bench bench-gpu benchmarks clean

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

pretrain: $(READY)  ## pretrain a small TerraFM on the simulated world (3 to 6 minutes on 2 cores); ends in a figure and a table
	$(BIN)/terrafm fit --config conf/pretrain.yaml --config conf/size/nano.yaml --config conf/data/simulated.yaml \
	  --config conf/hardware/cpu.yaml --config conf/small_scale.yaml --config conf/quick.yaml

pretrain-long: $(READY)  ## the longer configuration of docs/results.md, seeds 0, 1 and 2 (about an hour each on 2 cores)
	for seed in 0 1 2; do $(BIN)/terrafm fit --config conf/pretrain.yaml --config conf/size/nano.yaml \
	  --config conf/data/simulated.yaml --config conf/hardware/cpu.yaml --config conf/small_scale.yaml --config conf/quick.yaml --config conf/long.yaml \
	  --model.seed $$seed --seed_everything $$seed --trainer.logger.init_args.save_dir runs/long-$$seed || exit 1; done

DATA ?= data/real
FOLDS ?=
real: $(READY)  ## pretrain on real places in DATA (folder of scenes of both sensors), and report on places it never saw; FOLDS=3 leaves each out once
	$(BIN)/terrafm real $(DATA) $(if $(FOLDS),--folds $(FOLDS))

test: lint types contracts  ## format, lint, types, import contracts and the test suite (offline, CPU)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not soak" -n $(TESTERS) --dist worksteal

soak: $(READY)  ## the long versions of the tests
	$(BIN)/python -m pytest -q -m soak

lint: $(READY)  ## ruff: lint and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY)  ## mypy
	$(BIN)/mypy

contracts: $(READY)  ## import-linter: layers, circles, what may import what
	$(BIN)/lint-imports

# The core of the suite: the encoder, losses, views, sampler, a step of pretraining, tiles and their index, first commands.
CORE := $(addprefix tests/, models/test_vit.py models/test_registration.py models/test_patch_embed.py models/test_inputs.py \
  models/test_bands.py models/test_fusion.py models/test_checkpoint.py losses transforms samplers/test_land_cover_sampler.py \
  tasks/test_fast_step.py tasks/test_steps.py datasets/tiles datasets/index datasets/majortom/test_major_tom.py \
  cli/test_first_hours.py)
# What torch has only since later versions: Normalize in one graph, a stand-in for a GPU without one, a setting.
NEWER := test_compiles_without_a_break or test_nothing_waits_for_the_device or test_precision_is_restored_after_an_error

floors:  ## the suite's core on the least versions (floors.txt, Python 3.12) and on Python 3.13; docs/floors.md has the last result
	python3.12 -m venv --clear .venv.floors && .venv.floors/bin/pip install -q -c floors.txt ".[all]" pytest pytest-xdist hypothesis
	OMP_NUM_THREADS=1 .venv.floors/bin/python -m pytest -q -m "not soak" -k "not ($(NEWER))" -n $(CORES) $(CORE)
	PYENV_VERSION=$$(pyenv latest 3.13 2>/dev/null) python3.13 -m venv --clear .venv.floors && .venv.floors/bin/pip install -q ".[all]" pytest pytest-xdist hypothesis
	OMP_NUM_THREADS=1 .venv.floors/bin/python -m pytest -q -m "not soak" -n $(CORES) $(CORE)
	rm -rf .venv.floors

docs: $(READY)  ## build the documentation into site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]" -c constraints.txt
	$(BIN)/mkdocs build --strict

bench: $(READY)  ## on this machine: a training step's stages, the encoder's forward, packed tiles, and the loader
	$(BIN)/terrafm profile --config conf/pretrain.yaml --config conf/size/nano.yaml --config conf/data/simulated.yaml \
	  --config conf/hardware/cpu.yaml --config conf/small_scale.yaml --config conf/quick.yaml
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
