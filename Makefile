# make reproduce | test | test-all | notebooks | lint | bench: each sets up .venv by itself.
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV   := .venv
RUN    := $(VENV)/bin/python
SETUP  := $(VENV)/.installed

.PHONY: setup reproduce test test-all notebooks lint bench clean
setup: $(SETUP)

# torch first and pinned: a later resolution of a range would fetch another build.
$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
	@touch $@

# Every analysis, figure and table of the quick preset, in figures/quick/.
reproduce: $(SETUP)
	$(RUN) -m multilora.reproduce

# One thread a process: pytest-xdist runs one process a core. The notebooks are executed, not written.
test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto -m "not slow" --nbmake tests notebooks

test-all: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --nbmake tests notebooks

# Executed and saved with their outputs: after the tables in figures/ have changed.
notebooks: $(SETUP)
	OMP_NUM_THREADS=1 $(RUN) -m nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False notebooks/*.ipynb

lint: $(SETUP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(SETUP)
	$(RUN) -m benchmarks

clean:
	rm -rf $(VENV) runs figures/quick figures/full
