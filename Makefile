# Two commands set everything up: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
HOST14 := $(VENV)/host14
# the profiler that counts memory has nothing to say of GPUs that are not there
export KINETO_LOG_LEVEL := 99
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
PYTEST := $(PY) -W ignore::DeprecationWarning -m pytest -q -rs -n $(JOBS) --dist loadfile

.PHONY: demo test test-2 test-14 lint docs examples clean

demo: $(VENV)/installed
	$(PY) -W ignore examples/demo.py

test: test-2 test-14

test-2: $(VENV)/installed
	$(PYTEST) tests

test-14: $(VENV)/installed
	PYTHONPATH=$(HOST14) $(PYTEST) tests

lint: $(VENV)/installed
	$(VENV)/bin/ruff check sj_ext tests examples docs
	$(VENV)/bin/ruff format --check sj_ext tests examples docs

docs: $(VENV)/installed
	$(PY) -W ignore -m sphinx -q -W --keep-going -b html docs docs/_build/html

# Every example in its short form, which takes minutes on two cores.
examples: $(VENV)/installed
	$(PY) -W ignore examples/run_short.py

# The pinned set; both SpikingJelly generations share it, the older one in a folder of its own.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sj_ext needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		torch torchvision torchaudio spikingjelly -e ".[dev]"
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(HOST14) \
		spikingjelly==0.0.0.0.14
	touch $@

clean:
	rm -rf $(VENV) docs/_build runs
