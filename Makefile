# Everything is set up on the way to what you ask for, and not again when it is there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := qemu-system-x86 gdb gcc libc6-dev python3-venv
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: help demo test setup packages check docs accuracy clean

help: ## what there is
	@sed -n 's/^\([a-z]*\):.*## /  make \1  \t/p' $(MAKEFILE_LIST)

demo: setup ## boot a real Linux under QEMU, traced; replay it; print the report
	@echo "== recording a boot of Debian's cloud kernel into demo.db (the first time fetches it and reads its symbols)"
	@$(BIN)/shadowtrace record cloud-amd64 -o demo.db --force
	@echo "== replaying it through the shadow MMU of Linux 2.6.20"
	@$(BIN)/shadowtrace report demo.db

test: setup check ## every check and every test
	$(BIN)/python -m pytest

check: setup ## style, types, the house's rules
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

setup: packages $(VENV)/.ready ## Debian packages, virtual environment

packages:
	@missing=""; for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  echo "== installing Debian packages:$$missing"; \
	  $(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

$(VENV)/.ready: setup.cfg pyproject.toml | packages
	@echo "== making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[symbols,test,fast]'
	@touch $@

docs: setup ## write the parts of docs/ that are made from the code
	$(BIN)/python docs/generate.py

accuracy: setup ## measure how wrong first touches can be, into docs/accuracy.md (minutes)
	$(BIN)/python docs/accuracy.py

clean: ## forget the virtual environment and what tools left
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
