# Kymo: `make demo` and `make test` need Python 3.11, 3.12 or 3.13 and make, nothing else.
#
# .venv/.uv     a virtual environment with the installer in it
# .venv/.demo   what the demo needs, without training frameworks
# .venv/.setup  everything

supported := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
candidates := python3.12 python3.11 python3.13 python3
PYTHON ?= $(shell for p in $(candidates); do $$p -c "$(supported)" 2>/dev/null && { echo $$p; break; }; done)

# A container or a service may have no home folder; the installer still needs a place for its cache.
ifeq ($(strip $(HOME)),)
export UV_CACHE_DIR ?= $(CURDIR)/.kymo/cache/uv
export PIP_CACHE_DIR ?= $(CURDIR)/.kymo/cache/pip
endif
export UV_PYTHON_DOWNLOADS := never
export PIP_DISABLE_PIP_VERSION_CHECK := 1

bin := .venv/bin
# Compiled once: where Python may not write what it compiles (containers, CI), every start would do it again.
install = $(bin)/uv pip install --quiet --compile-bytecode --python $(bin)/python --constraint constraints.txt --build-constraints constraints.txt
compile = $(bin)/python -m compileall -q kymo streams processors models lab deploy examples
# A process for each core, each file whole in one of them, those with long tests first; what Python compiles of the tests is kept.
parallel = PYTHONDONTWRITEBYTECODE= $(bin)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
everything := kafka,audio,parquet,excel,video,frames,synth,physio,demo,report,torch,tensorflow,bench,dev

.DEFAULT_GOAL := help
.PHONY: help demo test check bench loop magnetic physio up setup chaos large soak pins clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 14

demo: .venv/.demo ## replay real recordings through Kafka and classify them
	@$(bin)/kymo demo

test: .venv/.setup ## run all tests but the long campaigns; ARGS="..." goes to pytest
	@$(parallel) $(ARGS)

check: .venv/.setup ## lint, format and types, the same as CI
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
	@$(bin)/mypy

bench: .venv/.setup ## measure Kymo beside its peers
	@$(bin)/python -m benchmarks $(ARGS)

loop: .venv/.setup ## the closed loop on real recordings: live accuracy rises when a refreshed model takes over
	@$(bin)/python -m kymo.examples.loop $(ARGS)

magnetic: .venv/.setup ## from nothing to a trained, registered, serving detector of magnetic distortion
	@$(bin)/python -m kymo.examples.magnetic $(ARGS)

physio: .venv/.setup ## a listener's skin, pulse, temperature and pupils as a live animation; ARGS="P01.xlsx"
	@$(bin)/python -m kymo.examples.physio $(ARGS)

up: .venv/.demo ## broker, worker and archive until Ctrl-C
	@$(bin)/kymo up

setup: .venv/.setup ## install everything, training frameworks too

chaos: .venv/.setup ## long fault campaign: kill -9, broker restarts, rebalances, fuzzing
	@$(bin)/python -m pytest -m chaos $(ARGS)

large: .venv/.setup ## large networks: one step of training, export, parity
	@$(bin)/python -m pytest -m large $(ARGS)

soak: .venv/.setup ## hours at real-time pace
	@$(bin)/python -m pytest -m soak $(ARGS)

pins: .venv/.setup ## renew constraints.txt and deploy/kafka.lock
	@{ echo "# Exact versions of everything, for Python 3.11 to 3.13 on every platform. Made by \`make pins\`."; \
	   $(bin)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --all-extras --no-header --no-annotate \
	     pyproject.toml; } > constraints.new && mv constraints.new constraints.txt
	@$(bin)/python -m kymo.deploy.kafka_server

clean: ## remove the virtual environment
	@rm -rf .venv

.venv/.uv:
	@test -n "$(PYTHON)" && $(PYTHON) -c "$(supported)" || { \
	  found=$$($(or $(PYTHON),python3) --version 2>/dev/null); \
	  echo "Kymo needs Python 3.11, 3.12 or 3.13, found $${found:-none}; install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@$(bin)/python -m pip install --quiet --constraint constraints.txt uv
	@touch $@

# aeon comes without its dependencies: only its recordings are read here.
.venv/.demo: .venv/.uv pyproject.toml constraints.txt
	@test -e .venv/.setup || { echo "Installing what the demo needs"; $(install) --editable '.[kafka]' && $(install) --no-deps aeon; }
	@test ! -e .venv/.setup || $(MAKE) --no-print-directory .venv/.setup
	@$(compile)
	@$(bin)/python -m kymo.deploy.prepare
	@touch $@

.venv/.setup: .venv/.uv pyproject.toml constraints.txt
	@echo "Installing everything (several GB; torch and tensorflow are among it)"
	@$(install) --editable '.[$(everything)]'
	@$(compile)
	@$(bin)/python -m kymo.deploy.prepare
	@touch $@
