# Two commands: `make book` and `make test`. The rest is listed by `make help`.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: help book test lab execute bench serve pdf clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

book: $(STAMP) ## build the book as HTML and say where to open it
	@$(RUN) tools/book.py html

test: $(STAMP) ## run every check: style, tests, notebooks, strict book build, pages in a browser
	@$(RUN) tools/check.py

lab: $(STAMP) ## open the chapters in JupyterLab
	@$(RUN) -m jupyterlab --notebook-dir=notebooks

execute: $(STAMP) ## re-run the chapters and store their outputs (one: make execute CHAPTER=path.ipynb)
	@$(RUN) tools/execute.py $(CHAPTER)

bench: $(STAMP) ## measure speed as ratios to peers in the same run
	@$(RUN) -m benchmarks

serve: $(STAMP) ## serve the built book on http://127.0.0.1:8000
	@$(RUN) tools/book.py serve

pdf: $(STAMP) ## print the whole book into one PDF
	@$(RUN) tools/book.py pdf

clean: ## remove what was built (the environment stays; remove .venv by hand)
	rm -rf _build build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

$(STAMP): requirements.txt tests/requirements-no-deps.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v[:2] <= (3, 13) or sys.exit("lossbook needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d. Name another: make book PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -r tests/requirements-no-deps.txt
	@touch $@
