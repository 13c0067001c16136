# Everything goes into .venv; `make install` is skipped when pyproject.toml and constraints.txt are unchanged.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODE := stm_retriever training integrations benchmarks examples tests
TYPED := stm_retriever training/stm_training integrations/langchain_stm \
         integrations/llama_index/embeddings/stm integrations/llama_index/retrievers/stm \
         integrations/llama_index/vector_stores/stm
# Two workers; a file's tests stay together, since they share fixtures. One thread each, or they wait for each other.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo test test-slow test-long interop check check-wheel docs bench-env format constraints clean

help:
	@echo "make demo         the whole path on the demo's handbook: train, merge, prove, export, index, search"
	@echo "make test         the tests (minutes); make test-slow for the long ones; make test-long: fuzzing and the paper's recipes, before a release"
	@echo "make interop      one retriever folder in other programs, each in an environment of its own (gigabytes)"
	@echo "make check        ruff, formatting, mypy, who may import whom"
	@echo "make check-wheel  the built wheel in a fresh environment without torch"
	@echo "make docs         the documentation site, in site/"
	@echo "make bench-env    environments of the peers that we are measured against, in .venv-bench; PEERS=mergekit for one"
	@echo "make format       apply ruff's formatting and safe fixes"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "stm-retriever needs Python >= 3.11, \
	this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
	  --editable '.[cpu,langchain,llama-index,train,eval,demo]' --group dev
	@touch $@

demo: install
	$(BIN)/stm-train demo $(ARGS)

test: install
	$(PYTEST) -m "not slow and not long and not gpu and not interop" $(ARGS)

test-slow: install
	$(PYTEST) -m slow $(ARGS)

test-long: install
	$(PYTEST) -m long $(ARGS)

interop: install
	$(BIN)/python -m tests.interop.environments
	STM_INTEROP_RESULTS=$(CURDIR)/training/stm_training/export/interop.json $(BIN)/python -m pytest tests/interop -m interop $(ARGS)

check: install
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy $(TYPED)
	$(BIN)/python -m pytest -q tests/contract/test_import_rules.py

check-wheel: install
	$(BIN)/python tests/check_wheel.py

docs: install
	$(BIN)/zensical build --strict -f mkdocs.yml

bench-env: install
	$(BIN)/python benchmarks/environments.py $(PEERS)

format: install
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

constraints: install
	@head -2 constraints.txt > constraints.new
	@$(BIN)/python -m pip freeze --exclude-editable | sed -e 's/+cpu//' -e 's/^torch @ .*/torch==2.13.0/' >> constraints.new
	@mv constraints.new constraints.txt

clean:
	rm -rf runs dist build .venv-wheel .pytest_cache .mypy_cache .ruff_cache
