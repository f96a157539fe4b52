# Everything is set up on the way to what you ask for, and not again when it is there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := qemu-system-x86 gdb gcc libc6-dev python3-venv mmdebstrap uidmap fakeroot e2fsprogs
# What the tests and the picture in README need besides: a browser, what reads manual pages, Perfetto files and a trace.dat, a file
# system with quotas and one over a network.
TEST_PACKAGES := chromium chromium-driver fonts-dejavu-core groff nodejs trace-cmd btrfs-progs sshfs openssh-sftp-server
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: help demo test quick test-boots test-fresh test-faults fuzz test-bounds test-sanitize setup packages test-setup test-packages check docs man \
	readme vendor accuracy bench clean

# Inputs that make fuzz tries of each target by our own mutations, and guided by coverage.
FUZZ_RUNS ?= 20000
GUIDED_RUNS ?= 5000
FIGURES := SHADOWTRACE_FIGURES=$(CURDIR)/docs/reliability.json

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1  \t/p' $(MAKEFILE_LIST)

# The fast core compiles while the guest's kernel is fetched and recorded: either keeps one processor busy.
demo: $(VENV)/.installed ## boot a real Linux under QEMU, traced; replay it; print the report
	@$(MAKE) --no-print-directory --jobs 2 $(VENV)/.ready demo-boot
	@echo "== replaying it through the shadow MMU of Linux 2.6.20"
	@$(BIN)/shadowtrace report demo.db

.PHONY: demo-boot
demo-boot: $(VENV)/.installed
	@echo "== recording a boot of Debian's cloud kernel into demo.db (the first time fetches it)"
	@$(BIN)/shadowtrace record cloud-amd64 -o demo.db --force

PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 2 --dist loadfile --no-loadscope-reorder

test: test-setup test-packages check ## every check and every test
	$(PYTEST)

quick: test-setup test-packages check ## checks, and the tests that need no guest: before each commit (2 minutes)
	$(PYTEST) -m "not boot and not faults and not slow"

test-boots: test-setup ## record the whole systems that make test leaves out
	$(BIN)/python -m pytest -m boots

test-fresh: ## the first command of README on a bare Debian 12 and 13 (root, debootstrap); figures into docs/reliability.md
	$(FIGURES) $(PYTHON) tests/fresh.py
	$(MAKE) test-setup
	$(BIN)/python docs/reliability.py

test-faults: test-setup ## kill and starve recordings by the dozen (an hour); figures into docs/reliability.md
	$(FIGURES) $(BIN)/python -m pytest tests/faults -m "faults or not faults"
	$(BIN)/python docs/reliability.py

fuzz: test-setup ## damaged inputs by the ten thousand, then guided by coverage; figures into docs/reliability.md
	$(FIGURES) FUZZ_RUNS=$(FUZZ_RUNS) $(BIN)/python -m pytest tests/fuzz
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	for target in reader verbs importer stream pack; do $(BIN)/python -m tests.fuzz.guided $$target $(GUIDED_RUNS) || exit 1; done
	$(BIN)/python docs/reliability.py

test-sanitize: test-setup ## the plugin under AddressSanitizer, through boots
	SHADOWTRACE_SANITIZE=1 $(BIN)/python -m pytest tests/tracer/test_sanitize.py

test-bounds: packages ## the quick tests with the lowest versions of all dependencies
	tests/bounds.sh

check: test-setup ## style, types, the house's rules
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

setup: $(VENV)/.ready ## Debian packages, virtual environment

test-setup: $(VENV)/.tested

packages: INSTALL := $(PACKAGES)
test-packages: INSTALL := $(TEST_PACKAGES)
test-packages: packages

packages test-packages:
	@missing=""; for p in $(INSTALL); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  echo "== installing Debian packages:$$missing"; \
	  $(SUDO) apt-get update -qq && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

$(VENV)/.installed: setup.cfg pyproject.toml | packages
	@echo "== making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fast]'
	@touch $@

$(VENV)/.ready: $(VENV)/.installed
	@echo "== compiling the fast core"
	@folder=$$(mktemp -d) && echo '{"ev":"invlpg","va":0}' > $$folder/one.jsonl && \
	$(BIN)/shadowtrace import $$folder/one.jsonl -o $$folder/one.db >/dev/null && $(BIN)/shadowtrace replay $$folder/one.db >/dev/null; \
	status=$$?; rm -rf "$$folder"; exit $$status
	@touch $@

# What tests and measurements need besides: the virtual environment has it from then on.
$(VENV)/.tested: $(VENV)/.ready
	@echo "== adding what the tests need to $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fast,test]'
	@touch $@

docs: test-setup ## write the parts of docs/ that are made from the code
	$(BIN)/python docs/generate.py

man: test-setup ## write the manual pages
	$(BIN)/python docs/manpages.py

readme: test-setup test-packages ## write the report and the picture in README, from a boot
	$(BIN)/python docs/readme.py

vendor: test-setup ## fetch the page's chart libraries from npm, pinned
	$(BIN)/python docs/vendor.py

accuracy: test-setup ## measure how wrong first touches can be, into docs/accuracy.md (minutes)
	$(BIN)/python docs/accuracy.py

bench: test-setup ## measure what everything costs, into docs/performance.md (minutes)
	$(BIN)/pip install --quiet --disable-pip-version-check adbc-driver-sqlite pyarrow
	$(BIN)/python -m bench

clean: ## forget the virtual environment and what tools left
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
