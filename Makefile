# make demo | make test | make check: each sets up .venv by itself, with nothing but Python 3.10 or later.

PYTHON ?= python3
# One of anomalib's extras for torch: cpu, cu126, cu130, rocm, xpu. They bound its version; which build comes is pip's index's.
TORCH ?=
comma := ,
VENV := .venv
BIN := $(VENV)/bin
EXTRA_TORCH := $(if $(TORCH),$(comma)$(TORCH))

.DEFAULT_GOAL := help
.PHONY: help demo demo-smoke test test-slow test-release bench check dist clean

help:
	@echo "make demo        train CDD on contaminated solar-cell images and show what it found (minutes)"
	@echo "make test        run every test but the slow ones"
	@echo "make test-slow   run the tests that take minutes too"
	@echo "make test-release  build, install into a fresh environment, use it (minutes; needs the package index)"
	@echo "make dist        wheel and source distribution, in dist/"
	@echo "make bench       measure speed against anomalib's models (more than an hour on two cores, 12 GB; results/bench)"
	@echo "make check       ruff and mypy"
	@echo "make clean       remove .venv and what was built; results/ stays"
	@echo "make demo-smoke  the demo at a tiny size, to see that everything is installed"
	@echo "make TORCH=cpu ...  add one of anomalib's extras for torch: cpu, cu126, cu130, rocm, xpu"

# the demo needs no more than the extra of its name, everything else that of the tests
$(VENV)/installed-%: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or later is needed, this is " + sys.version) if sys.version_info < (3, 10) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[$*$(EXTRA_TORCH)]"
	touch $@

demo: $(VENV)/installed-demo
	$(BIN)/python -m anomalib_cdd demo --config configs/demo.yaml

demo-smoke: $(VENV)/installed-demo
	$(BIN)/python -m anomalib_cdd demo --config configs/demo.yaml --smoke --output results/demo-smoke

# two processes of one thread: a test computes the same bits on any number of cores
test: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not release" -n 2 --dist loadfile

test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest -m "not release"

# PYTHON=python3.13 tries the wheel under another Python
test-release: $(VENV)/installed-test
	RELEASE_PYTHON=$(PYTHON) $(BIN)/python -m pytest tests/test_release.py

dist: $(VENV)/installed-test
	$(BIN)/python -m build --outdir dist

bench: $(VENV)/installed-test
	$(BIN)/python -m benchmarks

check: $(VENV)/installed-test
	$(BIN)/ruff check anomalib_cdd tests benchmarks
	$(BIN)/ruff format --check anomalib_cdd tests benchmarks
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info
