# Every target makes the environment first when it is missing, half made, or older than requirements.lock.
# PLAN: the plan to run (sample). ARGS: passed on, as in `make pipeline PLAN=real ARGS="-p DATA=../photos"`.
# JOBS: test files at once (2).
# PYTHON: the interpreter to make the environment with (the first of python3, python3.13, 3.12, 3.11 that will do).

PLAN ?= sample
ARGS ?=
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
UV := 0.13.8
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
SUITABLE := import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))

# Bytecode that is not kept is compiled anew in every process, 20 s of it for torch, timm and transformers.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help pipeline test lab bench kaggle-image environment lock browser
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile
	@echo 'Options: PLAN=sample  ARGS="-p NAME=VALUE ..."  PYTHON=python3.12'

pipeline: $(VENV)/.installed  ## run a plan: notebooks, submission, report (the sample competition without PLAN=)
	$(BIN)/python -m kitlib run $(PLAN) $(ARGS)

test: export OMP_NUM_THREADS = 1
test: $(VENV)/.installed browser  ## check style and types, then run the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lab: $(VENV)/.installed  ## open copies of the notebooks, in data/notebooks, in JupyterLab
	@mkdir -p data/notebooks; for file in notebooks/*.ipynb; do \
		[ -e data/$$file ] || cp $$file data/$$file; \
	done
	$(BIN)/jupyter lab $(ARGS) data/notebooks

bench: $(VENV)/.installed  ## measure what the README's table of speeds says (vlm.py and judge.py take long: by hand)
	@set -e; for script in $(filter-out benchmarks/vlm.py benchmarks/judge.py benchmarks/toy.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script $(ARGS); done

# A second environment, of Python 3.12 and the versions in platforms/kaggle/image.csv; torch alone is 3 GB.
.venv-kaggle/.installed: $(VENV)/.installed kitlib/platforms/kaggle/image.csv pyproject.toml
	$(BIN)/uv venv --quiet --clear --python $(or $(PYTHON),3.12) .venv-kaggle
	sed -e 1d -e 's/,/==/' kitlib/platforms/kaggle/image.csv > .venv-kaggle/image.txt
	$(BIN)/python -c 'from kitlib.platforms.kaggle import wheels; print(*wheels.pins(), sep="\n")' > .venv-kaggle/pins.txt
	$(BIN)/uv pip install --quiet --python .venv-kaggle -r .venv-kaggle/pins.txt -c .venv-kaggle/image.txt
	@touch $@

kaggle-image: .venv-kaggle/.installed  ## run a packed plan with the versions of Kaggle's image, offline, as on Kaggle
	KITLIB_KAGGLE_PYTHON=.venv-kaggle/bin/python $(BIN)/python -m pytest -n 0 tests/platforms/test_kaggle_proof.py $(ARGS)

environment: $(VENV)/.installed  ## only make the environment

lock: $(VENV)/.installed  ## resolve requirements.lock and images/vllm.lock again from pyproject.toml
	$(BIN)/uv pip compile --universal --fork-strategy fewest --no-annotate --no-header --python-version 3.11 \
		pyproject.toml --extra dev -o requirements.lock $(ARGS)
	$(BIN)/uv pip compile --no-annotate --no-header --python-version 3.11 --python-platform x86_64-manylinux_2_35 \
		pyproject.toml --extra rl --extra four_bit --extra vllm --extra wandb -o images/vllm.lock $(ARGS)

# Pages and notebooks are tested in a browser: the system's Chromium, else playwright's, else (as root) Debian's package.
browser: $(VENV)/.installed
	@$(BIN)/python tests/browser_helper.py

# The stamp is written last; .unfinished marks an environment that was cut short, whose packages may be in halves.
$(VENV)/.installed: requirements.lock pyproject.toml
	@python=""; for candidate in $(PYTHONS); do \
		if $$candidate -c '$(SUITABLE)' >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "error: Python 3.11, 3.12 or 3.13 with its venv module is needed; tried: $(PYTHONS)." >&2; \
		echo "Install one (on Debian and Ubuntu with its -venv package) or name it: make PYTHON=/path/to/python3.12" >&2; \
		exit 2; \
	fi; \
	if ! $(BIN)/python -c '$(SUITABLE)' >/dev/null 2>&1 || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "making the environment in $(VENV) with $$($$python --version)"; \
		$$python -m venv --clear $(VENV); \
	fi
	@reinstall=$$(test -e $(VENV)/.unfinished && echo --reinstall); set -ex; touch $(VENV)/.unfinished; \
	$(BIN)/python -m pip install --quiet $${reinstall:+--force-reinstall} uv==$(UV); \
	$(BIN)/uv pip install --python $(BIN)/python $$reinstall -r requirements.lock; \
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --editable .; \
	rm $(VENV)/.unfinished
	@touch $@
