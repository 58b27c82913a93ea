# Each target installs its requirements from the lock files into .venv. `make help` lists the targets.

PYTHON ?= python3
UV ?= uv
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: help demo test lint notifications slow faults soak generate pictures incidents mutants bench lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/runtime ## start a simulated API and an exporter that polls it; requires no account
	@exec $(BIN)/python -m exporter demo

test: .venv/dev ## run the tests
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: .venv/dev ## check style, format, types, YAML, shell scripts and compose files
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/yamllint --strict .
	@$(BIN)/shellcheck .ci/run .ci/packages
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec config/compose*.yaml

notifications: .venv/dev ## send the demo's alerts through Prometheus and Alertmanager to a webhook; 7 minutes
	@$(BIN)/python -m pytest -s -m slow tests/e2e/test_notifications.py

slow: .venv/dev ## run the slow tests; 30 minutes
	@$(BIN)/python -m pytest -s -m slow

faults: .venv/dev ## simulate faults of the API and the network, and print their effects; 3 minutes
	@$(BIN)/python -m pytest -q -s -m slow tests/e2e/test_faults.py

soak: .venv/dev ## poll a simulated API with random faults, and check values, memory and log; 30 minutes; variables: SOAK_MINUTES, SOAK_SEED
	@SOAK_MINUTES=$${SOAK_MINUTES:-30} $(BIN)/python -m pytest -q -s -m slow tests/soak

COMPOSED := $(addprefix config/compose/,prometheus.yml alertmanager.yml datasource.yml)

generate: .venv/dev config/kubernetes/prometheusrule.yaml $(COMPOSED) ## write all generated files: dashboards, documents, schema and copied configuration
	@$(BIN)/python -m dashboards
	@$(BIN)/python -m docs
	@$(BIN)/python -m exporter schema >config/schema.json

config/kubernetes/prometheusrule.yaml: config/prometheus/chatapp.rules.yml Makefile
	@printf '%s\n' '# Written by make generate from $<.' 'apiVersion: monitoring.coreos.com/v1' 'kind: PrometheusRule' \
	  'metadata: {name: chatapp-exporter, labels: {app.kubernetes.io/name: chatapp-exporter}}' 'spec:' >$@
	@sed 's/^\(.\)/  \1/' $< >>$@

# copies for containers: each service has its own host name, and the receivers send no notifications
config/compose/prometheus.yml: config/prometheus/prometheus.yml Makefile
	@printf '%s\n' '# Written by make generate from $<.' >$@
	@sed -e 's/localhost:10144/exporter:10144/' -e 's/localhost:9093/alertmanager:9093/' $< >>$@

config/compose/datasource.yml: config/grafana/provisioning/datasources/prometheus.yml Makefile
	@printf '%s\n' '# Written by make generate from $<.' >$@
	@sed -e 1d -e 's/localhost/prometheus/' $< >>$@

config/compose/alertmanager.yml: config/alertmanager/alertmanager.yml Makefile
	@printf '%s\n\n' '# Written by make generate from $<. Its receivers send no notifications.' >$@
	@sed -e '/^route:/,/^templates:/!d; /^templates:/d' $< >>$@
	@printf '%s\n' receivers: >>$@
	@grep '^  - name:' $< >>$@

pictures: .venv/dev ## update the screenshots of the status page
	@WRITE_PICTURES=1 $(BIN)/python -m pytest -q tests/browser/test_pictures.py

incidents: .venv/dev ## print the expected and the actual alerts of each simulated incident
	@PYTHONPATH=tests $(BIN)/python tests/incident_table.py

mutants: .venv/dev ## plant single faults in the rules (mutation testing), and print those that no test detects; 5 minutes; variable: RULE, for example RULE=ChatAppThrottled
	@PYTHONPATH=tests $(BIN)/python tests/mutants.py $(RULE)

bench: .venv/bench ## measure scrapes, polls, start, memory and rate limit with up to 50,000 phone numbers; 15 minutes; variable: BENCH, for example BENCH="scrape start"
	@PYTHONPATH=tests $(BIN)/python tests/benchmarks $(BENCH)

# existing pins are kept; UPGRADE=--upgrade updates them to the newest versions
lock: ## update the lock files from pyproject.toml; requires uv
	@command -v $(UV) >/dev/null || { echo 'error: make lock requires uv: install it with "pip install uv", or set UV=path' >&2; exit 1; }
	@$(compile) pyproject.toml --output-file requirements.lock
	@$(compile) pyproject.toml --extra credentials --constraints requirements.lock \
	  --output-file requirements-credentials.lock
	@$(compile) pyproject.toml --group dev --constraints requirements-credentials.lock --output-file requirements-dev.lock
	@$(compile) pyproject.toml --group bench --constraints requirements-dev.lock --output-file requirements-bench.lock
	@$(compile) --group build --constraints requirements-dev.lock --output-file requirements-build.lock

compile = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-annotate --custom-compile-command 'make lock' $(UPGRADE)

clean: ## remove .venv, dist and caches
	@rm -rf .venv dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find exporter tests -name __pycache__ -prune -exec rm -rf {} +

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: expected Python 3.11 or newer, found $$($(PYTHON) --version 2>/dev/null || echo 'no $(PYTHON)'); select another with: make PYTHON=python3.13" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/runtime: .venv/created requirements.lock
	@echo 'Installing the requirements of the exporter into .venv'
	@$(PIP) install --require-hashes -r requirements.lock
	@touch $@

.venv/dev: .venv/created requirements-dev.lock pyproject.toml
	@echo 'Installing the requirements of the tests into .venv'
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@ .venv/runtime

.venv/bench: .venv/dev requirements-bench.lock
	@echo 'Installing the requirements of the benchmarks into .venv'
	@$(PIP) install --require-hashes -r requirements-bench.lock
	@touch $@
