# `make help` lists the targets. Each of them sets up .venv first if it is missing or out of date.
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV   := .venv
RUN    := $(VENV)/bin/python
SETUP  := $(VENV)/.installed
# The versions that were tested; `make test PINS= TORCH=torch` takes the newest that are allowed.
PINS   := -c constraints.txt
TORCH  := torch==2.13.0

.PHONY: help setup reproduce real-model test test-all formats page notebooks lint docs bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(SETUP) ## create .venv and install the package with everything that tests need

# With uv if there is one, else pip. torch first and pinned: a later resolution of a range would
# fetch another build.
$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) .ci/install.py $(PINS) $(TORCH)
	$(RUN) .ci/install.py $(PINS) --editable '.[dev]'
	@touch $@

$(VENV)/.docs: $(SETUP)
	$(RUN) .ci/install.py $(PINS) --editable '.[docs]'
	@touch $@

reproduce: $(SETUP) ## train and compare six small runs; tables, figures and claims go to figures/quick/
	$(RUN) -m multilora.reproduce

real-model: $(SETUP) ## fetch a pretrained language model of 135 M parameters to runs/models/
	$(RUN) -m multilora.models smollm2

# One thread per process: pytest-xdist runs one process per core. Notebooks are run, not written.
test: lint ## lint, then run all tests that take seconds, and the notebooks
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto -m "not slow" --nbmake tests notebooks

test-all: lint ## the same with the slow tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --nbmake tests notebooks

formats: $(SETUP) ## make docs/formats.md from what the tests' situations come to
	PYTHONPATH=tests $(RUN) -m situations.table > docs/formats.md

page: $(SETUP) ## make docs/example-page.html from the published runs of one seed
	$(RUN) -m analysis.page --results figures/blocks/seed-5 --out docs/example-page.html

notebooks: $(SETUP) ## run the notebooks and save their outputs, after figures/ has changed
	OMP_NUM_THREADS=1 $(RUN) -m nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False notebooks/*.ipynb
	$(RUN) -m nbconvert --to notebook --inplace --TagRemovePreprocessor.enabled=True \
		--TagRemovePreprocessor.remove_all_outputs_tags=not-stored notebooks/07*.ipynb

lint: $(SETUP) ## check style, types and the architecture (which package may import which)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

docs: $(VENV)/.docs ## build the documentation, build/site/index.html; a warning or a broken link fails
	OMP_NUM_THREADS=1 $(RUN) -m sphinx -W --keep-going -q -c docs/site . build/site
	$(RUN) docs/site/links.py build/site

bench: $(SETUP) ## measure speed and memory; the results are in benchmarks/README.md
	$(RUN) -m benchmarks

clean: ## remove .venv, runs and unpublished figures
	rm -rf $(VENV) runs build figures/quick figures/full
