# Two commands set everything up: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
HOST14 := $(VENV)/host14
# the profiler that counts memory has nothing to say of GPUs that are not there
export KINETO_LOG_LEVEL := 99
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
SPHINX := $(PY) -W ignore -m sphinx -q -W --keep-going
BUILD := docs/_build
# the tutorials, and every page that has a catalogue
CATALOGUE := docs/locale/zh_CN/LC_MESSAGES
TRANSLATED := $(sort $(wildcard docs/tutorials/*.md) $(filter-out docs/sphinx.md,\
	$(patsubst $(CATALOGUE)/%.po,docs/%.md,$(wildcard $(CATALOGUE)/*.po $(CATALOGUE)/*/*.po))))
PYTEST := $(PY) -W ignore::DeprecationWarning -m pytest -q -rs -n $(JOBS) --dist loadfile $(COVERAGE)

# all recordings of public programs, where somebody has them beside the repository
RECORDINGS ?= ../shared/ref

.PHONY: demo test test-2 test-14 recordings coverage mutants lint docs catalogues notebooks front address \
	examples dist clean

demo: $(VENV)/installed
	$(PY) -u -W ignore examples/demo.py

test: test-2 test-14

# the tests, and the Python of the pages and docstrings
TESTS := tests README.md README.zh-CN.md docs sj_ext

test-2: $(VENV)/installed
	$(PYTEST) $(TESTS)

test-14: $(VENV)/installed
	PYTHONPATH=$(HOST14) $(PYTEST) $(TESTS)

# Recordings of the public programs beside the repository, of which tests/ has the smallest ones.
recordings: $(VENV)/installed
	$(PY) tests/published/everything.py $(RECORDINGS)
	PYTHONPATH=$(HOST14) $(PY) tests/published/everything.py $(RECORDINGS)

# The tests of both generations together must reach nearly every line and branch.
coverage: $(VENV)/installed
	rm -f .coverage
	$(MAKE) test COVERAGE="--cov --cov-append --cov-report="
	$(PY) tests/coverage_floor.py

# A random sample of small changes to the arithmetic core, which the tests must notice.
mutants: $(VENV)/installed
	$(PY) -W ignore tests/mutants.py --sample 12 --seed 1

lint: $(VENV)/installed
	$(VENV)/bin/ruff check sj_ext tests examples docs
	$(VENV)/bin/ruff format --check sj_ext tests examples docs
	$(VENV)/bin/mypy

# English with the tutorials executed, then Chinese with their stored output; then the catalogues'
# templates, what of the translation is out of date, and the links and the search of both.
docs: $(VENV)/installed
	rm -rf $(BUILD)/executed $(BUILD)/doctrees $(BUILD)/html docs/api/generated
	$(SPHINX) -b html -d $(BUILD)/doctrees/en docs $(BUILD)/html
	$(SPHINX) -b html -d $(BUILD)/doctrees/zh_CN -D language=zh_CN docs $(BUILD)/html/zh_CN
	$(SPHINX) -b gettext -d $(BUILD)/doctrees/gettext docs $(BUILD)/gettext $(TRANSLATED)
	$(PY) docs/check_translations.py --strict
	$(PY) docs/check_links.py $(BUILD)/html
	$(PY) docs/check_search.py $(BUILD)/html

# Bring the Chinese catalogues up to the English pages: other numbers put in, new messages empty,
# changed ones fuzzy.
catalogues: $(VENV)/installed
	$(SPHINX) -b gettext -d $(BUILD)/doctrees/gettext docs $(BUILD)/gettext $(TRANSLATED)
	$(PY) docs/carry_figures.py
	$(VENV)/bin/sphinx-intl update -p $(BUILD)/gettext -d docs/locale -l zh_CN --line-width=-1

# The tutorials as they ran in the last `make docs`, for readers of the repository.
notebooks:
	mkdir -p docs/notebooks
	cp $(BUILD)/html/tutorials/*.ipynb docs/notebooks

# The picture and the measured lines of README and results, from the committed records.
front: $(VENV)/installed
	$(PY) docs/front.py
	$(PY) docs/check_translations.py --stamp

# Where the repository is: make address OWNER=name
address: $(VENV)/installed
	sed -i 's|github\.com/[^/"]*/sj_ext|github.com/$(OWNER)/sj_ext|g; s|//[^/".]*\.github\.io/sj_ext|//$(OWNER).github.io/sj_ext|g' \
		pyproject.toml README.md README.zh-CN.md CITATION.cff
	$(PY) docs/check_translations.py --stamp

# sdist and wheel: built, looked into, and the wheel run from a bare environment on both hosts.
dist: $(VENV)/installed
	$(PY) tests/release/check.py dist $(HOST14)

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
	rm -rf $(VENV) docs/_build docs/api/generated dist build runs
