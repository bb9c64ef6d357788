# The only things needed are Python 3.11 or newer and make; `make` alone lists what there is.
# PYTHON=/path/to/python3 chooses the interpreter, ARGS="..." passes options on.

.DEFAULT_GOAL := help
.PHONY: help improve test lint bench clean

VENV := .venv
RUN := $(VENV)/bin/python
ARGS ?=
BENCH ?= benchmarks/finetune.py

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && echo $$p && break; done)

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1#\2/p' $(MAKEFILE_LIST) | \
		while IFS='#' read -r name text; do printf '%-16s %s\n' "$$name" "$$text"; done

improve: $(VENV)/.installed ## run one round of self-improvement on the real model
	@$(RUN) -m mlx_companion improve $(ARGS)

test: $(VENV)/.installed-dev ## check the style, then run every test
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m pytest -q $(ARGS)

lint: $(VENV)/.installed-dev ## check style, formatting and types
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m ruff format --check --quiet . || { echo "run: ruff format ."; exit 1; }
	@$(RUN) -m mypy

bench: $(VENV)/.installed ## measure this trainer beside mlx-lm's
	@$(RUN) $(BENCH) $(ARGS)

clean: ## remove what make, Python and the tests left here (your data is elsewhere and stays)
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment is made again when pyproject.toml changes, and mended when it was left half-made.
$(VENV)/.installed: pyproject.toml
	@$(call make_venv)
	@$(call install,.[blas])
	@touch $@

$(VENV)/.installed-dev: pyproject.toml
	@$(call make_venv)
	@$(call install,.[blas$(comma)dev])
	@touch $(VENV)/.installed $@

comma := ,

define install
echo "Installing what mlx-companion needs into $(VENV) (first time: a few minutes) ..." >&2; \
$(RUN) -m pip install -qq --disable-pip-version-check --editable "$(1)" >&2
endef

define make_venv
if [ -z "$(PYTHON)" ]; then \
	echo "mlx-companion needs Python 3.11 or newer, and none was found on the PATH." >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; \
fi; \
$(PYTHON) -c '$(NEW_ENOUGH)' || { \
	echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); mlx-companion needs 3.11 or newer." >&2; exit 1; }; \
$(RUN) -m pip --version >/dev/null 2>&1 || { \
	rm -rf $(VENV); \
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "Python could not make a virtual environment here (see above)." >&2; \
		echo "On Debian and Ubuntu run: sudo apt install python3-venv" >&2; exit 1; }; }
endef
