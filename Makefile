# Everything here can be run first, and twice, in a fresh clone: .venv is made when it is missing.
# Choose the interpreter with `make test PYTHON=python3.12` (3.11, 3.12 or 3.13).
SHELL := /bin/bash
export PYTHON
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup reproduce test test-long prepare docs docs-serve hooks lab

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS=$$'\t' read -r name what; do printf '  make %-10s %s\n' "$$name" "$$what"; done

setup:  ## make .venv and install into it
	@tools/setup

reproduce: setup  ## the main job: PQN with fixed batches against ABS, into runs/quick/report/index.html
	abs-lab reproduce quick

OUTPUTS = check
test: setup  ## what CI runs: generated files in step, lint and types, every notebook and its outputs, every test that is not long
	python tools/sync.py check
	ruff check abs_lab tests benchmarks tools
	mypy
	OMP_NUM_THREADS=1 python tools/outputs.py $(OUTPUTS)
	OMP_NUM_THREADS=1 python -m pytest -m "not long" -n 2 --dist loadfile --no-loadscope-reorder --durations 20

test-long: setup  ## the tests that take minutes to hours
	OMP_NUM_THREADS=1 python -m pytest -m long

prepare: setup  ## before a commit: export the notebooks, clean them, run them and store their outputs, write README.md, test
	python tools/sync.py write
	@$(MAKE) --no-print-directory test OUTPUTS=write

docs: setup  ## build the documentation into site/, without a network; fails on a broken link
	python tools/docs.py build

docs-serve: docs  ## build it and show it on this machine
	python tools/docs.py serve

hooks: setup  ## clean notebooks on save, diff and merge them by cell (sets up this clone's git, and your Jupyter)
	nbdev-install-hooks
	@git config --file .gitconfig merge.jupyternotebook.driver "'$(CURDIR)/.venv/bin/nbdev-merge' %O %A %B %P"
	@git config --file .gitconfig diff.jupyternotebook.command "'$(CURDIR)/.venv/bin/nbdev-diff-driver'"
	@printf '#!/bin/sh\nexec "%s/.venv/bin/nbdev-trust"\n' "$(CURDIR)" >.git/hooks/post-merge

lab: setup  ## open the notebooks in JupyterLab
	jupyter lab
