# Everything here works as the first command on a machine that has python3 (3.11 or newer) and make, and needs no root,
# except `peers`, which installs Debian packages.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RACK ?= examples/mini-rack.yaml
LAB_STATE ?= .lab
# uv's own certificate roots lack a private CA; the interpreter is the one that is here.
UV := UV_SYSTEM_CERTS=1 UV_PYTHON_DOWNLOADS=never $(BIN)/uv
EXTRAS := dev,lab
# One more than there are cores, since tests wait for servers and processes much of the time; each has a Postgres of its own.
TEST_WORKERS ?= $(shell echo $$(( $$(nproc 2> /dev/null || echo 2) < 8 ? $$(nproc 2> /dev/null || echo 2) + 1 : 8 )))

.DEFAULT_GOAL := help

.PHONY: help
help: ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "python3 is %d.%d; 3.11 or newer is needed" % sys.version_info[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check uv 2>/dev/null; then \
		$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS)]'; \
	else \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'; \
	fi
	@touch $@

.PHONY: install
install: $(INSTALLED) ## make the virtual environment that everything else uses

.PHONY: lab
lab: export METALPLANE_LAB_BEGAN := $(shell date +%s.%N)
lab: $(INSTALLED) ## start the lab, wait with live progress, walk the tour, leave the lab up
	@$(BIN)/metal-lab --state $(LAB_STATE) up --rack $(RACK)
	@$(BIN)/metal-lab --state $(LAB_STATE) tour

.PHONY: lab-down
lab-down: $(INSTALLED) ## stop the lab and leave no process behind
	@$(BIN)/metal-lab --state $(LAB_STATE) down

.PHONY: doctor
doctor: $(INSTALLED) ## find what would keep the lab from working
	@$(BIN)/metal-lab --state $(LAB_STATE) doctor

.PHONY: test
test: $(INSTALLED) ## run all tests (those of third-party peers are skipped where these are not installed)
	$(BIN)/python -m pytest -q -ra -n $(TEST_WORKERS) --no-loadscope-reorder $(PYTEST_ARGS)

.PHONY: lint
lint: $(INSTALLED) ## ruff, mypy --strict, import-linter, buf lint, contracts up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code > /dev/null
	$(BIN)/python protos/generate.py --check

.PHONY: format
format: $(INSTALLED) ## format code and protos
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cd protos && ../$(BIN)/buf format --write

.PHONY: proto
proto: $(INSTALLED) ## generate the contract library from the protos
	$(BIN)/python protos/generate.py

.PHONY: bench
bench: $(INSTALLED) ## run every benchmark (BENCH_ARGS=--quick for a short one)
	@mkdir -p bench/results
	@missed=0; for question in bench/*.py; do \
		case $$question in bench/report.py|bench/_*.py) continue;; esac; \
		echo "== $$question"; \
		$(BIN)/python $$question --json bench/results/$$(basename $$question .py).json $(BENCH_ARGS) || missed=1; \
	done; exit $$missed

.PHONY: peers
peers: ## install the third-party programs that tests marked `peer` use (Debian, root)
	apt-get update -q && apt-get install -qy --no-install-recommends frr frr-pythontools redis-server iproute2 procps \
		ipmitool openipmi nginx gdisk dosfstools e2fsprogs xfsprogs

.PHONY: image
image: ## build the container image of the services (needs a container engine)
	docker build -f deploy/Dockerfile $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) -t metalplane:latest .

.PHONY: clean
clean: ## remove the virtual environment, caches and the lab's state
	@if test -x $(BIN)/metal-lab; then $(BIN)/metal-lab --state $(LAB_STATE) destroy --yes; fi
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache bench/results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
