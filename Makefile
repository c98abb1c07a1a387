# Two commands matter: `make book` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

# Whether the advisory service answers: it knows of a hole in an old release.
define KNOWN_HOLE
import json, urllib.request
page = urllib.request.urlopen("https://pypi.org/pypi/jinja2/2.4.1/json", timeout=5)
assert json.load(page)["vulnerabilities"]
endef
export KNOWN_HOLE

.PHONY: help book pdf linkcheck check test tolerances mutants again style lint lab notebooks reproduce bench gpu venv clean
help:
	@echo "make book       execute the notebooks (cached) and build the HTML"
	@echo "make pdf        one PDF of the book, through Chromium"
	@echo "make linkcheck  whether every external link of the book answers"
	@echo "make check      style, types and the quick tests of the module, in a minute: what one runs while working"
	@echo "make test       unit tests, notebooks as regression tests, the built pages in a browser"
	@echo "make tolerances measure how far printed numbers move between code paths (an hour for all; resumable; WRITE=1)"
	@echo "make mutants    change formulas one at a time and see whether a test notices (half an hour)"
	@echo "make again      run each cell twice, from another folder (half an hour)"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make notebooks  run all notebooks anew and write their outputs back"
	@echo "make reproduce  run every experiment that has no valid record (hours; resumable)"
	@echo "make lint       style, formatting, types, known holes in dependencies"
	@echo "make bench      our training loop against others and the machine's limit, and the explorer"
	@echo "make gpu        what a CUDA card is for: tests, speed, the runs that want one (DRY=1: tiny, on a CPU)"
	@echo "make clean      remove what was built (not .venv, not data)"

venv: $(READY)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up .venv (a few minutes and about 5 GB the first time) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

book: $(READY)
	@$(BIN)/python book/build.py html --execute

pdf: book
	@$(BIN)/python book/pdf.py

linkcheck: $(READY)
	@$(BIN)/python book/build.py linkcheck

test: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder

check: style
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -o addopts= -p no:nbval -n 2 --dist loadscope -m "not slow" tests/core

tolerances: $(READY)
	@$(BIN)/python tests/measure_tolerances.py $(if $(WRITE),--write) $(NOTEBOOKS)

mutants: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python tests/mutation.py

again: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python tests/rerun_cells.py

style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lint: style
	@if $(BIN)/python -c "$$KNOWN_HOLE" 2>/dev/null; then $(BIN)/pip-audit --skip-editable --progress-spinner off; \
	else echo "The advisory service does not answer: dependencies were not audited."; fi

lab: $(READY)
	$(BIN)/jupyter lab --ip=127.0.0.1 notebooks/00_start_here.ipynb

notebooks: $(READY)
	@$(BIN)/python book/build.py notebooks

reproduce: $(READY)
	$(BIN)/python -m vae_core reproduce
	$(BIN)/python book/linear_mnist.py
	$(BIN)/python book/explorer_codes.py
	$(BIN)/python book/measurements.py
	$(BIN)/python book/disentanglement.py
	for k in 5 50; do test -f book/results/iwae-mnist-k$$k.safetensors || $(BIN)/python -m vae_core run iwae-mnist-k$$k; done
	$(BIN)/python book/bounds.py
	$(BIN)/python book/representations.py
	$(BIN)/python book/variational_em.py
	$(BIN)/python book/frechet.py
	$(BIN)/python book/contrastive_canvas.py
	$(BIN)/python book/full_covariance.py
	$(BIN)/python book/pca_control.py
	$(BIN)/python book/best_codes.py
	$(BIN)/python book/results_table.py

bench: $(READY)
	@$(BIN)/python tests/benchmark.py
	@$(BIN)/python tests/benchmark_linear.py
	@$(BIN)/python tests/benchmark_gradients.py
	@$(BIN)/python tests/benchmark_explorer.py

gpu: $(READY)
	@$(BIN)/python book/gpu.py $(if $(DRY),--dry) $(GPU_FLAGS)

clean:
	rm -rf book/_build .pytest_cache .ruff_cache .hypothesis
	find vae_core tests notebooks book -name __pycache__ -prune -exec rm -rf {} +
