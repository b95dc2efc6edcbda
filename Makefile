# Two commands set everything up on a machine that has Python 3.11+, make and a C++ compiler:
#   make demo   the main job on the embedded default (ONNX Runtime on the CPU; no torch)
#   make test   every quick test, lint and types; `make test-all` adds the slow ones
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Errors only: pip passes on what setuptools has to say of any editable install. Python compiles what it imports; to
# compile all that is installed takes 40 seconds more.
INSTALL := $(BIN)/python -m pip install -qq --no-compile

.PHONY: demo test quick test-all robustness lint audit clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip

# The stamps hold what is installed: the demo needs little, the tests need torch as well.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[cpu,plot]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[cpu,plot,export,train,crf,serve,coco,openvino,dev]'
	@$(INSTALL) -e '.[rtx,graphs]' \
	|| echo "TensorRT-RTX or cuda-python cannot be installed here: tests that need them will be skipped"
	touch $@ $(VENV)/.demo

$(VENV)/.all: $(VENV)/.dev
	$(INSTALL) -e '.[cluster]' 'moto[server]>=5'
	touch $@

demo: $(VENV)/.demo
	$(BIN)/infercam demo

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages' tests need a browser; without one they are skipped, saying so.
$(VENV)/.browser: | $(BIN)/python
	@if $(BIN)/python -c 'import shutil, sys; sys.exit(not any(map(shutil.which, sys.argv[1:])))' \
	    chromium chromium-browser google-chrome google-chrome-stable chrome; then touch $@; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  { apt-get update -q && apt-get install -qy --no-install-recommends chromium fonts-dejavu-core; } >/dev/null \
	  && touch $@ || echo "Chromium could not be installed: the pages' tests will be skipped"; \
	else echo "no Chromium here: the pages' tests will be skipped (install chromium to run them)"; fi

# Compiled files are kept even where the environment says not to: the tests start the command some 200 times.
quick test-all: export PYTHONDONTWRITEBYTECODE :=

# Lint and types beside the tests, the browser beside the packages: what waits for the network or one core.
test:
	@$(MAKE) --no-print-directory -j 2 lint quick

# Two processes, each with half of the tests; who is done first takes over some of the other's.
quick: $(VENV)/.dev $(VENV)/.browser
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist worksteal

# With Ray and a stand-in for S3, in one process. Peers of `infercam bench` are tested where they are installed.
test-all: lint $(VENV)/.browser $(VENV)/.all
	$(BIN)/python -m pytest

# Kills, full disks, damaged input, attacks, a long run: what is lost is counted (20 minutes on 2 cores).
robustness: $(VENV)/.all
	$(BIN)/python -m tests.robustness

# What the two images install, against the published advisories; one that cannot be looked up fails, too.
audit: $(VENV)/.dev
	$(INSTALL) pip-audit
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r engine/serve/docker/requirements-cpu.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r engine/serve/docker/requirements-gpu.txt \
		-r engine/serve/docker/requirements-tensorrt.txt -r engine/serve/docker/requirements-tensorrt-rtx.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
