# make demo: draws made-up faces, trains both stages on them, purifies, tests, prints the tables. make test: style and tests.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO := demo
# Threads that wait by spinning take the cores from those that work, where others use the machine too.
export OMP_WAIT_POLICY := PASSIVE
# Compiled modules are kept beside their sources, whatever the environment says: tests start many processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test fuzz clean-demo help

help:
	@echo "make demo        the whole way on made-up faces, on a CPU"
	@echo "make test        ruff and pytest"
	@echo "make fuzz        100,000 damaged files for each reader, some minutes; FUZZ='--readers png --seed 1'"
	@echo "make clean-demo  removes what make demo made"

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(DEMO)/face_dataset: | $(VENV)/installed
	$(RUN) prepare.py synthetic --years-per-person 12 --output $@

# Each step goes on where it was stopped, and is done at once when it is finished.
demo: $(VENV)/installed | $(DEMO)/face_dataset
	$(RUN) train.py @recipes/demo-age.args
	$(RUN) train.py @recipes/demo.args
	$(RUN) purify.py @recipes/demo-purify.args
	$(RUN) test.py @recipes/demo-test.args

# With mmap, or where it gives memory back, glibc gets that of each large tensor anew, page by page: a third of a
# convolution's time in float64.
test: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 OMP_NUM_THREADS=1 $(RUN) -m pytest -n 3 --dist worksteal

fuzz: $(VENV)/installed-dev
	$(RUN) tests/fuzz.py $(FUZZ)

clean-demo:
	rm -rf $(DEMO)
