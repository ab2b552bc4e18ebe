# Two commands are all a newcomer needs: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Any later edit of the two files installs again.
STAMP := $(VENV)/.installed

# Each module is compiled once, not by every process that the tests start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check format fuzz test-backends bench setup clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(STAMP)  ## serve the bundled model at http://localhost:3000
	MODEL_NAME=axion/demo $(BIN)/python -m axion

test: check  ## format, lint, types and layers, then every test
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

check: $(STAMP)  ## format, lint, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layering.py

format: $(STAMP)  ## format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

fuzz: $(STAMP)  ## send thousands of random requests that /openapi.json allows, and others
	FUZZ_CASES=500 $(BIN)/python -m pytest -q --timeout 1800 tests/server/test_fuzz.py

test-backends: $(STAMP)  ## install MAX, vLLM and llama.cpp beside, and test with the real ones
	AXION_PYTHON=$(BIN)/python tests/engines/install.sh
	AXION_ENGINES_DIR=$${AXION_ENGINES_DIR:-$$HOME/.cache/axion/engines} \
		$(BIN)/python -m pytest -v tests/engines

bench: $(STAMP)  ## measure; docs/performance.md says what the figures mean
	$(BIN)/python benchmarks/roofline.py
	$(BIN)/python benchmarks/products.py
	$(BIN)/python benchmarks/experts.py
	$(BIN)/python benchmarks/gguf_types.py
	$(BIN)/python benchmarks/elementwise.py
	$(BIN)/python benchmarks/prompts.py
	$(BIN)/python benchmarks/compare.py --shape llama-3.2-1b
	$(BIN)/python benchmarks/embeddings.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/scheduler.py
	$(BIN)/python benchmarks/server_overhead.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/cache.py
	$(BIN)/python benchmarks/structured.py
	$(BIN)/python benchmarks/speculative.py
	$(BIN)/python benchmarks/deterministic.py
	$(BIN)/python benchmarks/kv_cache.py
	$(BIN)/python benchmarks/proxy.py
	$(BIN)/python benchmarks/proxy.py --streams 100 --burst
	$(BIN)/python benchmarks/failover.py
	$(BIN)/python benchmarks/cold_start.py

setup: $(STAMP)  ## make the virtual environment and install

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Axion needs Python 3.11 or later; PYTHON=python3.12 make ... names another one."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean:  ## remove the virtual environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
