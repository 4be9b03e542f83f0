# Two commands do everything on a fresh machine:  make run   make test
# VENV=…         another folder for the environment
# TORCH_INDEX=…  where pip finds PyTorch's CPU build (README, "PyTorch without CUDA")

PYTHON  ?= python3
VENV    ?= .venv
PORT    ?= 8000
HOME_DIR ?= home
VIEWER  ?= .viewer
STUDIES ?= sample-data/studies
SLICER_VENV ?= .venv-slicer
PEFT_VENV ?= .venv-peft
BIN     := $(VENV)/bin
WORKERS ?= 2
GPU     := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)
TORCH   := $(if $(GPU),torch==2.13.0,torch==2.13.0+cpu)
PIP     := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

SBOM_VENV ?= .venv-sbom

.PHONY: help run viewer ohif ohif-tools slicer-tools slicer-pictures peft-tools demo test check lint setup sample sbom audit clean

help:
	@echo "make run     set up, make sample studies and a sample model, serve on http://127.0.0.1:$(PORT)/"
	@echo "make viewer  prepare a current OHIF from its npm package, for 'make run' and the tests"
	@echo "make demo    set up and show unlearning on synthetic people, in minutes: a report and a picture"
	@echo "make test    set up and run the tests"
	@echo "make check   make test, and before it formatting, lint, types and import rules"
	@echo "make sbom    write a bill of what is installed (CycloneDX) to build/sbom.json; make audit asks for known holes"
	@echo "make clean   remove the environment, the sample studies and the sample home"

$(VENV)/.ready: pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v[:2] < (3, 12) else f"Python 3.11 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch ($(if $(GPU),a GPU was found,no GPU: the CPU build)) …"
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) '$(TORCH)' || { echo; \
	  echo "PyTorch ($(TORCH)) was not found where pip looks. A machine without a GPU needs the CPU build,"; \
	  echo "which PyTorch serves from an index of its own; see 'PyTorch without CUDA' in README.md, then:"; \
	  echo "  make TORCH_INDEX=<that index> $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing SegUnlearn and what it needs …"
	@$(PIP) -e '.[server,postgresql,dev]'
	@$(PIP) --no-deps monailabel==0.8.5
	@touch $@

setup: $(VENV)/.ready

sample-data/.ready: sample-data/generate.py sample-data/phantom.py | $(VENV)/.ready
	$(BIN)/python sample-data/generate.py --out sample-data/studies
	$(BIN)/python sample-data/generate.py --out sample-data/nifti --nifti
	@touch $@

sample: sample-data/.ready

run: setup sample
	@test -e $(HOME_DIR)/models/segmentation/active || \
	  $(BIN)/segunlearn train --data sample-data/nifti --home $(HOME_DIR) \
	    --people sample-data/nifti/people.csv --labels liver,spleen --recipe sample --holdout 0.3
	$(BIN)/segunlearn serve --studies $(STUDIES) --home $(HOME_DIR) --port $(PORT) \
	  $(if $(wildcard $(VIEWER)/index.html),--conf viewer $(VIEWER))

viewer: setup
	$(BIN)/segunlearn viewer $(VIEWER)

# The extension that ships in the package is built from lib/ohif; a test compares the two.
lib/ohif/node_modules/.ready: lib/ohif/package-lock.json
	cd lib/ohif && npm ci --prefer-offline --loglevel=error
	@touch $@

ohif-tools: lib/ohif/node_modules/.ready

ohif: ohif-tools
	cd lib/ohif && npm run --silent check && npm run --silent build

demo: setup
	OMP_NUM_THREADS=1 $(BIN)/segunlearn demo --home .demo

# Real MRML and real Qt, apart from the server's packages: vtk and slicer-core take 1.3 GB.
$(SLICER_VENV)/.ready: tests/slicer/constraints.txt
	@$(PYTHON) -m venv $(SLICER_VENV)
	@echo "Installing 3D Slicer's libraries for the tests of its module …"
	@$(SLICER_VENV)/bin/python -m pip --disable-pip-version-check install --quiet \
	  --constraint $< slicer-core PySide6-Essentials numpy pydicom pytest requests
	@touch $@

slicer-tools: $(SLICER_VENV)/.ready

# peft beside the packages of $(VENV): there MONAI would import transformers at every start.
$(PEFT_VENV)/.ready: constraints.txt $(VENV)/.ready
	@$(PYTHON) -m venv --clear $(PEFT_VENV)
	@echo "Installing peft for the test of what our adapters are to it …"
	@echo "import site; site.addsitedir('$(abspath $(VENV))/lib/python3.11/site-packages')" \
	  >$(PEFT_VENV)/lib/python3.11/site-packages/segunlearn_environment.pth
	@$(PEFT_VENV)/bin/python -m pip --disable-pip-version-check install --quiet \
	  --no-warn-conflicts --constraint constraints.txt peft
	@touch $@

peft-tools: $(PEFT_VENV)/.ready

slicer-pictures: setup slicer-tools
	mkdir -p build/slicer
	cd tests/slicer/offscreen && SEGUNLEARN_SHOTS=$(CURDIR)/build/slicer \
	  SEGUNLEARN_PYTHON=$(abspath $(BIN))/python $(abspath $(SLICER_VENV))/bin/python -m pytest -q

test: setup slicer-tools peft-tools
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

# Tools that look at the environment from outside, so that they do not stand in the bill themselves.
$(SBOM_VENV)/.ready: container/sbom-tools.txt
	@$(PYTHON) -m venv $(SBOM_VENV)
	@$(SBOM_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@touch $@

sbom: setup $(SBOM_VENV)/.ready
	@mkdir -p build
	$(SBOM_VENV)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  --output-file build/sbom.json $(BIN)/python

# pip-audit itself is content where it can ask about no package at all; container/audit.py is not.
audit: sbom
	@rm -f build/audit.json
	@echo "Asking for known holes of the pinned packages …"
	@$(SBOM_VENV)/bin/pip-audit --no-deps --disable-pip --requirement constraints.txt \
	  --progress-spinner off --format json --output build/audit.json >/dev/null || true
	@$(BIN)/python container/audit.py build/audit.json

clean:
	rm -rf $(VENV) $(SLICER_VENV) $(PEFT_VENV) $(SBOM_VENV) build/sbom.json build/audit.json sample-data/studies sample-data/nifti sample-data/.ready $(HOME_DIR) .demo
