# make serve   build, then serve the demo model on http://localhost:8000   (PORT=9000; ARGS="--max-model-len 2048" adds flags)
# make test    build, then run all tests                                   (ARGS="-k scheduler" adds arguments)
# make check   lint, types, layers
# make bench   build, then measure the server on this machine          (ARGS="--llama", ARGS="--peer vllm=http://..." compare)
# make tables  the tables of docs/from-vllm.md, docs/quantization.md and docs/models.md, from those of the code
# make sanitize   the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer (some minutes)
# make ui      the page that octavo serves at /, from ui/ (needs Node.js and npm; the built page is in the repository)
# make ui-test   the page in a real Chromium (Debian: apt-get install chromium; or CHROMIUM=path)
# make wheel   a source distribution and a wheel in dist/ (BASE_PYTHON=python3.12; ARGS=aarch64)
# make build   a virtual environment in .venv with octavo installed for editing; quick when nothing changed
VENV ?= .venv
BASE_PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p) 2>/dev/null)))
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip install -q --disable-pip-version-check -c constraints.txt
NATIVE := CMakeLists.txt $(shell find csrc -type f)
PORT ?= 8000
ARGS ?=

.PHONY: build serve test check bench tables sanitize ui ui-test wheel clean

build: $(VENV)/.octavo-built

$(VENV)/bin/python:
	$(BASE_PYTHON) -m venv $(VENV)
	$(PYTHON) -m pip install -q --disable-pip-version-check --upgrade pip

# The build tools first: with them in place the native module compiles incrementally, outside pip's isolation.
$(VENV)/.octavo-built: pyproject.toml constraints.txt $(NATIVE) | $(VENV)/bin/python
	@echo "installing octavo and what it needs into $(VENV) (minutes, the first time)"
	$(PIP) scikit-build-core nanobind cmake ninja
	$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

serve: build
	@echo
	@echo "The demo model answers on http://localhost:$(PORT) when the server says that it is ready: open it in a browser, or try:"
	@echo
	@echo "  curl http://localhost:$(PORT)/v1/chat/completions -H 'Content-Type: application/json' \\"
	@echo "    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"What is the capital of Japan?\"}], \"temperature\": 0}'"
	@echo
	@echo "  $(VENV)/bin/octavo chat --url http://localhost:$(PORT)/v1"
	@echo
	@$(VENV)/bin/octavo serve --port $(PORT) $(ARGS)

test: build
	$(PYTHON) -m pytest -n 2 $(ARGS)

check: build
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo
	$(PYTHON) -m pytest -q tests/unit/test_imports.py

bench: build
	$(PYTHON) bench/compare.py $(ARGS)

tables: build
	$(PYTHON) -m octavo.cli.vllm.page docs/from-vllm.md
	$(PYTHON) -m octavo.models.page docs/models.md
	$(PYTHON) -m octavo.quant.methods.page docs/quantization.md

# The sanitizers' runtime has to be there before Python's own allocator; leaks are not looked for, since Python has some.
sanitize: build
	$(VENV)/bin/cmake -S . -B build/sanitize -G Ninja -DOCTAVO_SANITIZE=ON -DOCTAVO_OUTPUT=$(CURDIR)/build/sanitize \
	  -DPython_EXECUTABLE=$(abspath $(PYTHON)) -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV)/bin/ninja) > /dev/null
	$(VENV)/bin/cmake --build build/sanitize
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(PYTHON) tests/support/sanitized.py build/sanitize tests/ops tests/quant $(ARGS)

ui: ui/node_modules
	cd ui && npm run --silent build

ui-test: build ui/node_modules
	$(PIP) playwright
	$(PYTHON) -m pytest tests/ui $(ARGS)

wheel:
	PYTHON=$(BASE_PYTHON) deploy/wheels/build.sh $(ARGS)

ui/node_modules: ui/package-lock.json
	cd ui && npm ci --no-fund --no-audit
	@touch $@

clean:
	rm -rf build ui/node_modules $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
