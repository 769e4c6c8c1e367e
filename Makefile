# make chat   a virtual environment, the package, and a chat with the bundled demo pair
# make install   the command `pipeinfer` for this user, by pipx or uv
# make test   the same for the test suite
# make lint   ruff and mypy
# make real-model   fetch Gemma 3 270M (240 MB) for the tests that use a real model

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml models.toml $(shell find pipeinfer_cpp -name '*.py' -o -name '*.toml' -o -name '*.gguf')

.PHONY: chat install test lint real-model clean

chat: $(VENV)/.installed
	@$(BIN)/pipeinfer chat --pair demo

install:
	@command -v pipx >/dev/null || command -v uv >/dev/null || \
		{ echo "pipx or uv is needed (Debian and Ubuntu: apt install pipx; macOS: brew install pipx)."; exit 2; }
	@echo "Installing; llama.cpp is compiled for this CPU: that takes some minutes."
	@if command -v pipx >/dev/null; then pipx install --force '.[server]'; else uv tool install --force '.[server]'; fi

test: $(VENV)/.installed-dev
	$(BIN)/pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

real-model: $(VENV)/.installed-dev
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[real-model]'

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3 chat"; exit 2; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
		{ echo "A C++ compiler is needed to build llama.cpp: install g++ (Linux) or the Xcode tools (macOS)."; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "Python's venv module is missing: install it (Debian and Ubuntu: apt install python3-venv)."; exit 2; }
	@touch $@

$(VENV)/.installed: $(VENV)/.made $(SOURCES)
	@echo "Installing; the first time, llama.cpp is compiled for this CPU: that takes some minutes."
	@$(BIN)/pip install --quiet --disable-pip-version-check '.[server]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.made pyproject.toml
	@echo "Installing; the first time, llama.cpp is compiled for this CPU: that takes some minutes."
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
