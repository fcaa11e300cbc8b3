# Two commands on a fresh machine: `make up` and `make test`. `make` alone explains itself.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made-from-lock
# Arguments for `up`, `down`, `bench` and the test targets: make up ARGS="--control-planes 3"
ARGS ?=
# Where `make test` leaves its JUnit files, with the seconds of every test.
RESULTS ?= build/results
# Rounds of `race`.
RUNS ?= 5

# What `provisioner up` takes from the machine: Python, a C compiler for runc and pause, and the lab's tools.
PACKAGES := python3 python3-venv ca-certificates gcc libc6-dev libseccomp-dev pkg-config busybox-static \
	systemd-container mmdebstrap debian-archive-keyring iproute2 procps util-linux openssh-client
# What the tests take besides: real OpenSSH servers and users, a second opinion on certificates, a look at packet filters, a
# browser for the page of `report`, Graphviz for `graph`, two formatters of manual pages.
TEST_PACKAGES := openssh-server openssl sudo nftables iptables chromium graphviz mandoc groff-base
# Virtual machines with kernels of their own, for the drill that cuts the power of a whole cluster.
QEMU_PACKAGES := qemu-system-x86 qemu-utils e2fsprogs
# Vagrant with libvirt, for the drill on its machines; none of the services is started, the drill starts daemons of its own.
VAGRANT_PACKAGES := vagrant vagrant-libvirt libvirt-daemon-system libvirt-clients libvirt-daemon-driver-qemu dnsmasq-base iptables

.PHONY: help
help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: system
system: ## Install the Debian packages that `up` needs, where some are missing (root)
	@tools/install-packages $(PACKAGES)

.PHONY: system-test
system-test: ## Install the Debian packages that `up` and the tests need, where some are missing (root)
	@tools/install-packages $(PACKAGES) $(TEST_PACKAGES)

.PHONY: venv
venv: $(STAMP) ## Make .venv from requirements.lock, with the command `provisioner` in it

$(STAMP): requirements.lock pyproject.toml tools/make-venv
	@tools/make-venv $(VENV)
	@touch $@

.PHONY: up
up: system venv ## Lab machines, a cluster on them, and the proof that it works: make up ARGS="--control-planes 3"
	@$(BIN)/provisioner up $(ARGS)

.PHONY: down
down: venv ## Remove the lab that `up` made: make down ARGS="--name lab"
	@$(BIN)/provisioner lab down $(ARGS)

.PHONY: lint
lint: venv ## ruff, mypy --strict, ansible-lint (production), yamllint: all of them, then the verdict
	@failed=""; \
	try() { echo "lint: $$*"; "$(BIN)/$$@" || failed="$$failed $$1"; }; \
	try ruff check --quiet .; \
	try ruff format --quiet --check .; \
	try mypy; \
	try yamllint --strict .; \
	PATH="$(CURDIR)/$(BIN):$$PATH" try ansible-lint -q; \
	[[ -z $$failed ]] || { echo "lint: not clean:$$failed" >&2; exit 1; }

.PHONY: unit
unit: venv ## Hermetic tests, a few seconds each
	@$(BIN)/pytest -n auto --dist worksteal tests/unit $(ARGS)

.PHONY: contract
contract: venv ## Do Python and Ansible agree?
	@$(BIN)/pytest tests/contract $(ARGS)

.PHONY: integration
integration: system-test venv ## Parts against real servers and lab machines
	@$(BIN)/pytest tests/integration $(ARGS)

.PHONY: e2e
e2e: system-test venv ## Real clusters on lab machines, through the command line
	@$(BIN)/pytest tests/e2e $(ARGS)

# In three parts. Hermetic tests side by side, on every core; parts against real servers and a few machines, and beside these two the
# drill that does little but wait; clusters, in two halves side by side, for they wait half of their time: tests that share one
# cluster, and those with clusters of their own (tests/e2e/conftest.py). `-o testpaths` and no path: so tests/conftest.py sees a whole
# run, in which every end-to-end test must have its turn.
.PHONY: test
test: system-test venv lint ## Lint and every test, the real clusters included
	@log=$$(mktemp); failed=""; \
	EXPIRY=short $(BIN)/pytest tests/e2e/test_expiry.py >"$$log" 2>&1 & drill=$$!; \
	$(BIN)/pytest -q -n auto --dist worksteal --junitxml=$(RESULTS)/hermetic.xml tests/unit tests/contract || failed=" hermetic"; \
	[[ -n $$failed ]] || $(BIN)/pytest --durations=10 --durations-min=10 --junitxml=$(RESULTS)/integration.xml tests/integration || failed=" integration"; \
	[[ -z $$failed ]] || kill -INT $$drill; \
	wait $$drill || failed="$$failed drill"; \
	cat "$$log"; rm -f "$$log"; \
	[[ -z $$failed ]] || { echo "test: failed:$$failed" >&2; exit 1; }
	@log=$$(mktemp); failed=""; half="$(BIN)/pytest -o testpaths=tests/e2e --durations=30 --durations-min=10"; \
	E2E_HALF=own $$half --junitxml=$(RESULTS)/e2e-own.xml $(ARGS) >"$$log" 2>&1 & own=$$!; \
	E2E_HALF=shared $$half --junitxml=$(RESULTS)/e2e-shared.xml $(ARGS) || failed=" shared"; \
	wait $$own || failed="$$failed own"; \
	cat "$$log"; rm -f "$$log"; \
	[[ -z $$failed ]] || { echo "test: failed:$$failed" >&2; exit 1; }

.PHONY: drills
drills: system-test venv ## What high availability costs when machines vanish: the full form (30 minutes), into bench/results
	@DRILLS=full DRILLS_OUT="bench/results/drills-$$(date -u +%F).json" $(BIN)/pytest tests/e2e/test_drills.py $(ARGS)

.PHONY: drill-kills
drill-kills: system-test venv ## `apply` disturbed at 30 random moments; the next one converges: figures into bench/results (half an hour)
	@KILLS=full KILLS_OUT="bench/results/kills-$$(date -u +%F).json" $(BIN)/pytest tests/e2e/test_kills.py $(ARGS)

.PHONY: drill-certs
drill-certs: system-test venv ## Certificates valid for minutes: renewal under load, and back from beyond their end (20 minutes)
	@EXPIRY=full EXPIRY_OUT="bench/results/certs-$$(date -u +%F).json" $(BIN)/pytest tests/e2e/test_expiry.py $(ARGS)

.PHONY: drill-upgrade
drill-upgrade: system-test venv ## From Kubernetes 1.35.4 to 1.36.3 under load, undisturbed: figures into bench/results (ten minutes)
	@UPGRADE=full UPGRADE_OUT="bench/results/upgrade-$$(date -u +%F).json" $(BIN)/pytest tests/e2e/test_upgrade.py $(ARGS)

.PHONY: drill-power-cut
drill-power-cut: system venv ## SIGKILL for all machines of a QEMU cluster at once, then power: is every write there? (root; half an hour)
	@tools/install-packages $(QEMU_PACKAGES)
	@$(BIN)/python -m tests.power $(ARGS)

.PHONY: drill-vagrant
drill-vagrant: system venv ## `vagrant up`, a cluster on its machines, and all of it gone again: figures into bench/results (root; ten minutes, more the first time)
	@tools/install-packages $(QEMU_PACKAGES) $(VAGRANT_PACKAGES)
	@$(BIN)/python -m tests.vagrant $(ARGS)

.PHONY: bench
bench: system venv ## Where each second of `up` goes
	@$(BIN)/python bench/run.py $(ARGS)

.PHONY: race
race: system venv ## kubeadm against this toolkit, 3 + 2 machines, RUNS=5 each: raw figures into bench/results (root; 25 minutes, nothing else)
	@$(BIN)/python -m bench.compare.race --runs $(RUNS) $(ARGS)

.PHONY: race-figures
race-figures: system venv ## What a day's commands cost: raw figures into bench/results (root; a quarter of an hour)
	@$(BIN)/python -m bench.compare.figures $(ARGS)

.PHONY: race-scale
race-scale: system venv ## The controller against 5, 50 and 200 machines: raw figures into bench/results (root; 8 GiB of memory)
	@$(BIN)/python -m bench.compare.scale $(ARGS)

.PHONY: race-plots
race-plots: venv ## Tables and pictures of docs/race.md, out of the newest raw figures
	@$(BIN)/python -m bench.compare.plots $(ARGS)

.PHONY: docs
docs: venv ## Write the reference and manual pages anew out of the code
	@$(BIN)/python -m tools.reference docs/reference
	@$(BIN)/python -m provisioner.cli.man man

# Material's note on the future of MkDocs says nothing about these pages.
.PHONY: site
site: venv ## The documentation as a static site in build/site; a broken link or a page nobody finds ends it
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.PHONY: site-serve
site-serve: venv ## The same on http://127.0.0.1:8000, anew with every change of a page
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8000 $(ARGS)

.PHONY: links
links: venv ## Does every link to another site lead somewhere? (network; nothing else runs it)
	@$(BIN)/python -m tools.links $(ARGS)

.PHONY: lock
lock: venv ## Make requirements.lock anew from pyproject.toml
	@$(BIN)/uv pip compile --quiet --upgrade --no-emit-index-url --no-emit-find-links --no-header --generate-hashes \
		--python-version 3.11 --universal --group dev pyproject.toml --output-file requirements.lock

.PHONY: clean
clean: ## Remove .venv and what the tools have left; workspaces and caches of artifacts stay
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .ansible
	@find . -name __pycache__ -type d -not -path './workspace/*' -prune -exec rm -rf {} +
