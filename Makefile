# Every target sets up what it needs in .venv: a machine with make, a network and Python 3.11 to 3.14 is enough.
# `make help` lists them.

# python3 when it is new enough, else the newest python3.x that is; `make PYTHON=/path/to/python3.12 …` decides otherwise.
# A name on the PATH proves little (version managers leave stubs), so each one is run.
SUITABLE := import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$python" -c '$(SUITABLE)' 2>/dev/null && { echo "$$python"; break; }; done)

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Where CUDA is tested and measured: an environment of its own, with onnxruntime-gpu in place of onnxruntime.
# `make CUDA_PYTHON=/path/to/python test-cuda` uses one that has everything already.
CUDA_VENV := .venv-cuda
CUDA_PYTHON ?= $(CUDA_VENV)/bin/python
CUDA_READY := $(if $(filter $(CUDA_VENV)/%,$(CUDA_PYTHON)),$(CUDA_VENV)/.ready)
SOURCES := $(wildcard rewriter passes models tests benchmarks docs)
DEMO := build/demo

# One process per processor, at most 4: each may hold a whole model and its ONNX Runtime session.
WORKERS := -n logical --maxprocesses 4 --dist worksteal
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-cuda lint format types docs forms zoo-channels channels-campaign wrong-rewrites right-rewrites third-party peers wheel-test swap-test bench bench-cuda campaign ci clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

venv: $(READY) ## set up .venv: the project (editable), its tools, the tested versions

$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c '$(SUITABLE)' 2>/dev/null || { echo "error:$(if $(PYTHON), '$(PYTHON)' is, found)" \
		"no Python 3.11 to 3.14 with venv and ensurepip; install one (Debian and Ubuntu: also python3-venv)," \
		"or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(CUDA_VENV)/.ready: pyproject.toml constraints.txt
	"$(PYTHON)" -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(CUDA_VENV)/bin/python -m pip uninstall --quiet --yes onnxruntime
	$(CUDA_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'onnxruntime-gpu[cuda,cudnn]'
	@touch $@

demo: $(READY) ## rewrite a ResNeXt-50 exported from TensorFlow, prove it, time it
	mkdir -p $(DEMO)
	$(BIN)/python -m models zoo:tf_resnext50_depthwise_sum -o $(DEMO)/tf_resnext50.onnx
	$(BIN)/rewriter optimize $(DEMO)/tf_resnext50.onnx -o $(DEMO)/tf_resnext50.rewritten.onnx --threads 1 --report $(DEMO)/report.json

test: $(READY) ## run the tests (ARGS='-k name' and the like reach pytest)
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-cuda: $(CUDA_READY) ## run the tests that need a CUDA GPU; fails where there is none (about 3 GB to download)
	REWRITER_REQUIRE_CUDA=1 $(CUDA_PYTHON) -m pytest -m cuda $(ARGS)

docs: $(READY) ## build the pages and pictures of docs/passes
	$(BIN)/python -m docs.build

forms: $(READY) ## try every conversion between two forms on 40 random models each, and build docs/forms.md (10 minutes)
	$(BIN)/python -m benchmarks.forms
	$(BIN)/python -m docs.build

zoo-channels: $(READY) ## follow the channels of every exported model, and build docs/channels.md
	$(BIN)/python -m benchmarks.zoo_channels
	$(BIN)/python -m docs.build

channels-campaign: $(READY) ## pad and permute the channels of 10000 random networks: the same bits (ARGS='--first SEED' for others)
	$(BIN)/python -m benchmarks.channels $(ARGS)

wrong-rewrites: $(READY) ## audit every kind of wrong rewrite, and build docs/wrong-rewrites.md (2 minutes)
	$(BIN)/python -m benchmarks.wrong
	$(BIN)/python -m docs.build

right-rewrites: $(READY) ## audit 10000 right rewrites; resumes what is there (ARGS='--fresh' or '--first SEED')
	$(BIN)/python -m benchmarks.right $(ARGS)
	$(BIN)/python -m docs.build

third-party: $(READY) ## audit what five other optimizers make of the exported models, into docs/third-party.md (an hour)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'
	$(BIN)/python -m benchmarks.third_party $(ARGS)
	$(BIN)/python -m benchmarks.third_party_page

peers: $(READY) ## the zoo through other tools and OpenVINO, timed beside this one, into docs/peers.md (70 minutes; ARGS=--resume goes on)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'
	$(BIN)/python -m benchmarks.peers $(ARGS)
	$(BIN)/python -m benchmarks.peers_page

wheel-test: $(READY) ## build the wheel, install it in a clean environment, use it from an empty folder
	$(BIN)/python -m pytest tests/test_wheel.py -m 'wheel or not wheel' $(ARGS)

swap-test: $(READY) ## replace onnxruntime by onnxruntime-gpu in a clean environment (downloads 255 MB; needs no GPU)
	$(BIN)/python -m pytest tests/test_swap.py -m swap $(ARGS)

lint: $(READY) ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## let ruff format, and fix what it safely can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY) ## mypy --strict
	$(BIN)/mypy $(SOURCES)

bench: $(READY) ## measure the figures the README gives (takes a while; wants a quiet machine)
	@set -e; for name in engine optimize components readme; do echo "benchmarks/$$name.py"; $(BIN)/python -m benchmarks.$$name; done

bench-cuda: $(CUDA_READY) ## measure the figures of a GPU, in 8 minutes, into benchmarks/results/cuda.json
	$(CUDA_PYTHON) -m benchmarks.cuda $(ARGS)

campaign: $(READY) ## every pass on every model, audited, into docs/campaign.md; resumes what is there (takes hours)
	$(BIN)/python -m benchmarks.campaign $(ARGS)
	$(BIN)/python -m benchmarks.campaign_page

ci: ## everything the continuous integration runs
	.ci/run

clean: ## remove everything that the targets made
	rm -rf $(VENV) $(CUDA_VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
