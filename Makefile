# make demo and make test work from a fresh clone on a bare Debian 12, as root or as a user who may use sudo.
# What is missing is said before it is installed: Debian packages, and Python packages into .venv (never anywhere else).
# A second run finds everything there and starts at once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PY := .venv/bin/python
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# Caches that root would write into a user's checkout stay out of it.
AS_ROOT := $(SUDO) $(if $(SUDO),env PYTHONDONTWRITEBYTECODE=1 CI="$${CI:-}")

# bcc, the packet filter compiler and the kernel's user-space headers for the tracer; the rest is for the practice network.
DEBIAN_DEMO := python3 python3-venv python3-bpfcc libpcap0.8 linux-libc-dev \
	nftables iproute2 util-linux dnsmasq-base bind9-dnsutils iputils-ping
# For tests only: a real sshd (started by the tests alone, on loopback), sudo, the checker of the C code's format, and
# tshark, which reads what we export; iptables translates addresses in its two ways.
DEBIAN_TEST := $(DEBIAN_DEMO) openssh-server openssh-client sudo bpftool bpfcc-tools clang-format git tshark iptables

# A browser for JupyterLab, with something to write in; poppler reads what it prints.
DEBIAN_BROWSER := $(DEBIAN_TEST) chromium fonts-dejavu-core poppler-utils

# Emulated machines for the stock kernels.
DEBIAN_KERNELS := $(DEBIAN_TEST) qemu-system-x86 busybox-static kmod file xz-utils squashfs-tools debian-archive-keyring
# The longest first: two run side by side.
KERNELS := 6.12 5.10 6.1 sid

.PHONY: help demo test test-browser screenshots test-kernels gallery bench bench-kernels soak lint clean \
	debian-demo debian-test debian-browser debian-kernels

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

demo: debian-demo .venv/installed ## three real DNS queries through three network namespaces, as packets and paths; a notebook as HTML
	@mkdir -p out
	@$(AS_ROOT) $(PY) -m bpfpath_nb.lab.demo

test: debian-test .venv/installed ## everything that can be proven on this machine
	@$(AS_ROOT) $(PY) -m pytest

test-browser: debian-browser .venv/installed ## JupyterLab in a real browser: captured live, clicked through, read where nothing runs
	@$(AS_ROOT) $(PY) -m pytest tests/browser

screenshots: debian-browser .venv/installed ## pictures of the panels for docs/, taken by the same tests
	@mkdir -p docs/screenshots
	@$(AS_ROOT) BPFPATH_SHOTS=docs/screenshots $(PY) -m pytest tests/browser

test-kernels: debian-kernels .venv/installed ## the same on stock kernels, each in an emulated machine: KERNELS="5.10 6.12"
	@$(AS_ROOT) KERNELS="$(KERNELS)" BPFPATH_RECORD="$${BPFPATH_RECORD:-}" $(PY) -m pytest -v tests/kernels

gallery: .venv/installed ## docs/gallery.md and its pictures, from the recordings in this repository
	@$(PY) docs/gallery.py

bench: debian-demo .venv/installed ## events/s drained, time until armed, cost per hop; frames of ten million hops
	@$(AS_ROOT) $(PY) benchmarks/run.py
	@$(PY) benchmarks/frames.py

bench-kernels: debian-kernels .venv/installed ## what tracing costs on a stock kernel, beside pwru, in an emulated machine
	@$(AS_ROOT) $(PY) benchmarks/kernels.py

soak: debian-test .venv/installed ## ten minutes of traffic, with interfaces, namespaces and captures coming and going
	@$(AS_ROOT) BPFPATH_SOAK=600 $(PY) -m pytest -s tests/live/test_soak.py

lint: debian-test .venv/installed ## format, lints and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy --strict -p bpfpath_nb
	clang-format --dry-run -Werror $$(git ls-files 'bpf/*.c' 'bpf/*.h')

clean: ## remove .venv, caches and what the other targets wrote
	@rm -rf .venv .cache out dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis 2>/dev/null \
		|| $(SUDO) rm -rf .venv .cache out dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -prune -exec rm -rf {} +

debian-demo:
	@$(call install-debian,$(DEBIAN_DEMO))

debian-browser:
	@$(call install-debian,$(DEBIAN_BROWSER))

debian-kernels:
	@$(call install-debian,$(DEBIAN_KERNELS))

debian-test:
	@$(call install-debian,$(DEBIAN_TEST))

# A package counts as there when it, or one that provides it, is installed.
define install-debian
	if ! command -v apt-get > /dev/null; then \
		echo "This is no Debian: nothing is installed. '$(PY) -m bpfpath_nb.cli doctor' tells what is missing."; \
		exit 0; \
	fi; \
	there=" $$(dpkg-query -W -f='$${db:Status-Abbrev} $${Package}, $${Provides}\n' \
		| sed -n 's/^ii *//p' | sed -E 's/\([^)]*\)//g' | tr -s ', \n' ' ') "; \
	missing=; \
	for package in $(1); do case "$$there" in *" $$package "*) ;; *) missing+=" $$package" ;; esac; done; \
	if [ -n "$$missing" ]; then \
		echo "Installing Debian packages:$$missing"; \
		$(SUDO) apt-get update -qq < /dev/null; \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $$missing < /dev/null > /dev/null; \
	fi
endef

# The first Python from 3.11 on that can make a venv: `python3` may be an older one of pyenv or conda.
.venv/installed: pyproject.toml
	@for python in $${PYTHON:-} python3 python3.13 python3.12 python3.11 /usr/bin/python3; do \
		if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then \
			found="$$python"; break; \
		fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
		echo "No Python >= 3.11 with venv was found; name one: make PYTHON=/path/to/python3 ..." >&2; exit 1; \
	fi; \
	echo "Installing bpfpath_nb and its Python packages into .venv (about 700 MB, once)"; \
	$(PY) -m pip --version > /dev/null 2>&1 || "$$found" -m venv --clear .venv; \
	$(PY) -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@
