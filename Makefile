# Each target needs Python 3.11 or newer and a package index; the first one sets up .venv, later ones start at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Keras on TensorFlow, which needs other versions than this project.
BENCH_VENV := .venv-bench
ARGS ?=

.DEFAULT_GOAL := help
TARGETS := help train test lint format bench results schema torture audit tensorboard notebook outputs screenshots lock clean
.PHONY: $(TARGETS)

# Make would ignore unknown variables, and look for an unknown target after an hour of training. Names with __ and targets
# with a dot are those of tab completion. A make that calls this one passes its own variables on.
known := PYTHON VENV BIN BENCH_VENV ARGS CI SHELL MAKEFLAGS __%
given := $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name)))
unknown := $(if $(filter 0,$(MAKELEVEL)),$(filter-out $(known),$(given)))
options := $(foreach name,$(unknown),$(if $(filter arg Arg ARG args Args,$(name)),,--$(name) )$($(name)))
goals := $(filter-out $(TARGETS) .% $(VENV)/% $(BENCH_VENV)/%,$(MAKECMDGOALS))
ifneq ($(goals),)
$(error cannot make $(firstword $(goals)): there is no such target, only $(TARGETS); options are typed as in make train ARGS="--max_epochs 2")
endif
ifneq ($(unknown),)
$(error cannot use $(unknown): only PYTHON and ARGS are variables here; type make $(or $(MAKECMDGOALS),train) ARGS="$(options)")
endif

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

train: $(VENV)/.ready ## Train on Fashion-MNIST, or on the drawn stand-in if it is not available, and test (ARGS="--help" for more)
	$(BIN)/python scripts/train.py --dataset auto $(ARGS)

test: $(VENV)/.ready ## Run the tests
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

lint: $(VENV)/.ready ## Check format, lint, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.ready ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# These don't time Keras, so TensorFlow is not installed for them.
without_keras := growth scaling trainer startup --help
without_keras += $(without_keras:%=--part=%)
bench: $(VENV)/.ready $(if $(filter $(without_keras),$(ARGS)),,$(BENCH_VENV)/.ready) ## Measure speed on this machine next to Keras and other peers (ARGS="--part growth": data and batch sizes)
	$(BIN)/python -m tools.benchmark --keras_python $(BENCH_VENV)/bin/python $(ARGS)

results: $(VENV)/.ready ## Rebuild the tables of README and docs/ from the records
	$(BIN)/python -m tools.results $(ARGS)

schema: $(VENV)/.ready ## Rebuild recipes/schema.json from the options
	$(BIN)/python -m tools.schema

torture: $(VENV)/.ready ## Kill 100 trainings at random moments, resume them, and compare (ARGS="--runs 10" for fewer)
	$(BIN)/python -m tools.torture $(ARGS)

audit: $(VENV)/.ready ## Check the locked dependencies for known vulnerabilities
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements.lock $(ARGS)

tensorboard: $(VENV)/.ready ## Show the runs in lightning_logs
	$(BIN)/tensorboard --logdir lightning_logs $(ARGS)

notebook: $(VENV)/.ready ## Open the notebook in JupyterLab
	$(BIN)/jupyter lab notebooks/fashion_mnist_cnn_with_dropout.ipynb $(ARGS)

outputs: $(VENV)/.ready ## Run the notebook on Fashion-MNIST and store its outputs in it (takes minutes)
	$(BIN)/python -m tools.notebook

screenshots: $(VENV)/.ready ## Take README's pictures of the newest run (needs Chromium and an emoji font; ARGS="--run_folder ..." for another)
	$(BIN)/python -m tools.screenshots $(ARGS)

lock: ## Pin all dependencies (needs uv; ARGS="--upgrade" for newer versions)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-annotate --custom-compile-command "make lock" -o requirements.lock $(ARGS)
	printf 'keras\ntensorflow-cpu\n' | uv pip compile - --universal --python-version 3.11 --generate-hashes \
		--no-annotate --custom-compile-command "make lock" -o benchmarks/requirements.lock $(ARGS)

clean: ## Remove the environment and caches; runs and data stay
	rm -rf $(VENV) $(BENCH_VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v < (3, 11) and sys.exit(f"$(PYTHON) is Python {v[0]}.{v[1]}; 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@echo "set-up 1/3: creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "set-up 2/3: installing requirements.lock (Linux: about 3.3 GB to download, 7.1 GB on disk, mostly CUDA libraries of torch)"
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	@echo "set-up 3/3: installing this project in editable mode"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable . # setuptools warns of any editable install
	@touch $@

$(BENCH_VENV)/.ready: benchmarks/requirements.lock
	@echo "set-up of the peers: installing Keras and TensorFlow into $(BENCH_VENV)"
	@$(PYTHON) -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install --quiet --require-hashes -r benchmarks/requirements.lock
	@touch $@
