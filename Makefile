# SPDX-License-Identifier: Apache-2.0
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
export PYTHON

VENV := .venv/bin
TESTBED := PYTHONPATH=tests $(VENV)/python -m testbed
RUN := PYTHONPATH=tests $(VENV)/python -m gates.run

.PHONY: help setup demo test gates lint sanity unit molecule bench build lock parsers clean

help: ## this list
	@echo "h20.fleet: from bare hosts with eight NVIDIA H20 to a fleet that serves DeepSeek-V3 with vLLM"
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18
	@echo "Options: PYTHON=python3.12 (interpreter of .venv), ONLY=\"ruff mypy\" (gates of make test, or locks of make lock, by name)"

setup: ## .venv with everything that the other verbs need; once per content of requirements/test.txt
	@tests/gates/setup.sh

demo: setup ## two hosts in containers, from bare to answering chat completions
	@$(TESTBED).demo

test: setup ## every gate: the fast ones, ansible-test sanity, the tarball, every molecule scenario (ONLY=molecule/site: one)
	@$(RUN) $(ONLY)

gates: setup ## the fast gates: linters, types, syntax, spec and unit tests
	@$(RUN) --fast

lint: setup ## the linters alone
	@$(RUN) ruff mypy yamllint ansible-lint codespell guard

sanity: setup ## ansible-test sanity, without containers and without Ansible's servers
	@$(RUN) sanity

unit: setup ## unit and spec tests
	@$(RUN) unit

molecule: setup ## every molecule scenario, with the containers that it needs
	@$(RUN) molecule

bench: demo ## what a converged fleet costs, in bench/results.json too; BENCH="release --hosts 4": a mirror against pip
	@$(VENV)/python -m bench.run $(BENCH)

build: setup ## the collection's tarball in dist/
	@$(VENV)/ansible-galaxy collection build --force --output-path dist

lock: setup ## resolve the lock files of vLLM, with their hashes into the releases, and the requirements of the tools (ONLY: these locks alone)
ifndef ONLY
	@$(VENV)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --upgrade requirements/test.in > .cache/lock.txt
	@{ echo '# SPDX-License-Identifier: Apache-2.0'; echo '# Resolved from test.in by `make lock`, for Python 3.11 to 3.14 alike.'; cat .cache/lock.txt; } > requirements/test.txt
endif
	@PYTHONPATH=tests $(VENV)/python -m gates.locks $(ONLY)

parsers: setup ## read the options of vLLM out of its own parser, for each version of requirements/parsers.yml
	@PYTHONPATH=tests $(VENV)/python -m gates.parsers

clean: ## the test bed's containers and everything that was built here
	@if [[ -x $(VENV)/python && -d tests/testbed ]]; then $(TESTBED) clean || echo "clean: the test bed's containers may be left" >&2; fi
	@rm -rf .venv .cache .testbed dist
