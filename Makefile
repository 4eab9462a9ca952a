# make run    sets up, starts the whole mesh, runs pipelines/headlines.yaml, leaves the mesh serving
# make test   sets up, checks and tests everything, on the same real parts
# Another Python: make PYTHON=/path/to/python3.13 run

# The Python of .venv, so that `make down` after `make PYTHON=… run` needs no PYTHON; else the first of these.
PYTHON ?= $(shell for p in "$$(sed -n 's/^executable = //p' .venv/pyvenv.cfg 2>/dev/null)" python3.12 python3.13 python3.11; do \
	"$$p" -c "" 2>/dev/null && echo "$$p" && exit; done; echo python3)
PIPELINE ?= pipelines/headlines.yaml
BIN := .venv/bin

# Container images set it; each process of a mesh and of the tests would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run down status check test unit contract integration e2e faults loop soak bench-engine bench-sequential bench-drift bench-cascade bench-semantic bench-serving bench-training bench-plan bench-advise bench-augment bench-pii bench-students bench-ingest bench-cleaning stubs docs lock format clean

help: ## lists the targets
	@grep -E '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: ## makes .venv from requirements.lock
	@$(PYTHON) infra/bootstrap.py

run: setup ## starts the mesh and runs PIPELINE (pipelines/headlines.yaml)
	@$(BIN)/tidemill quickstart $(PIPELINE)

down: setup ## stops the mesh
	@$(BIN)/tidemill down

status: setup ## shows the health of every part
	@$(BIN)/tidemill status

check: setup ## drift of stubs and docs, buf, ruff, mypy strict, import-linter, commit messages
	$(BIN)/python protos/generate.py --check
	$(BIN)/python -m docs.generate --check
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code --path protos/tidemill
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python infra/commits.py
	$(BIN)/python -m infra.audit

# Workers: one more than cores, for many tests wait.
WORKERS ?= 3

unit: setup ## fast tests, no other process
	$(BIN)/pytest -n $(WORKERS) -m "not slow" tests/unit

# What the services do with their databases, tested on SQLite among the unit tests.
STORES := tests/unit/pipeline tests/unit/training/test_supervision.py tests/unit/inference/test_publishing.py \
	tests/unit/ingest/test_runner.py tests/unit/ingest/test_declared_sources.py tests/unit/ingest/test_policies.py \
	tests/unit/gateway/test_keys.py tests/unit/cleaning/test_use_cases.py \
	tests/unit/cleaning/test_originals.py

# Each worker has the parts of one group of tests at a time (tests/groups.py).
SIDE_BY_SIDE := $(BIN)/pytest -n $(WORKERS) --dist loadgroup --durations 15

contract: setup ## one suite on fakes and real parts
	$(SIDE_BY_SIDE) tests/contract
	$(BIN)/pytest -n 2 --database postgresql $(STORES)

integration: setup ## each service with its real parts
	$(SIDE_BY_SIDE) tests/integration

e2e: setup ## the whole mesh: pipelines, clients, events, kills
	$(BIN)/pytest tests/e2e

# How long: `make faults SEEDS=1-20 MINUTES=10` kills processes at random for that long with each seed.
SEEDS ?= 1-2
MINUTES ?= 1
LOAD_SECONDS ?= 300

faults: setup ## fault injection: attacks, kills, full disks, load; an hour
	@status=0; set -x; \
	$(BIN)/pytest -n 2 -m "faults or slow or hypothesis" --hypothesis-profile thorough tests/unit || status=1; \
	$(BIN)/pytest -n 2 -m slow --database postgresql $(STORES) || status=1; \
	$(SIDE_BY_SIDE) -m "faults or slow" tests/contract tests/integration tests/e2e || status=1; \
	TIDEMILL_FAULT_SEEDS=$(SEEDS) TIDEMILL_FAULT_MINUTES=$(MINUTES) TIDEMILL_LOAD_SECONDS=$(LOAD_SECONDS) \
		$(BIN)/pytest --hypothesis-profile thorough tests/faults || status=1; \
	exit $$status

loop: setup ## a product whose users teach its model, on a mesh of its own; twenty minutes
	@$(BIN)/uv pip install --quiet --no-deps --no-build-isolation ./clients/python
	$(BIN)/python -m examples.product

SUITE ?= test
TIMES ?= 5

soak: setup ## SUITE (test) TIMES (5) times in a row while both cores are kept busy beside it
	$(BIN)/python -m tests.soak $(SUITE) --times $(TIMES)

test: check unit ## everything but the slow faults
	$(BIN)/pytest -n 2 -m "not slow" --database postgresql $(STORES)
	$(SIDE_BY_SIDE) -m "not slow" tests/contract tests/integration tests/e2e tests/faults

bench-engine: setup ## OpenVINO beside ONNX Runtime on the newest runs, into docs/benchmarks.md
	$(BIN)/python -m benchmarks.engine

bench-sequential: setup ## simulated experiments: false promotions and power, into docs/benchmarks.md
	$(BIN)/python -m benchmarks.sequential

bench-drift: setup ## false alarms and power of the drift trigger, into docs/benchmarks.md
	$(BIN)/python -m benchmarks.drift

bench-cascade: setup ## a small classifier with a larger one behind it, into docs/benchmarks.md
	$(BIN)/python -m benchmarks.cascade

bench-semantic: setup ## how often a cache by the likeness of texts would be wrong, into docs/benchmarks.md
	$(BIN)/python -m benchmarks.semantic

bench-serving: setup ## what the gateway adds to a call to Triton, into docs/benchmarks.md
	$(BIN)/python -m benchmarks.serving

bench-training: setup ## fine-tuning beside TRL and PEFT, methods beside each other, into docs/benchmarks.md
	$(BIN)/python -c "from infra.stack.assets import prepare; from infra.stack.layout import Home; \
		from services.kit.config import home_dir; prepare(Home(home_dir()), ['bbc', 'smollm2'])"
	$(BIN)/python -m benchmarks.training

bench-cleaning: setup ## one and two processes of cleaning, into docs/benchmarks.md
	$(BIN)/python -m benchmarks.cleaning

bench-ingest: setup ## durable ingest beside the Kafka client under it, into docs/benchmarks.md
	$(BIN)/python -m benchmarks.ingest

bench-plan: setup ## the memory plan beside what trainings take, into docs/benchmarks.md
	$(BIN)/python -m benchmarks.plan

bench-advise: setup ## how often advice picks what measurements pick, into docs/benchmarks.md
	$(BIN)/python -m benchmarks.advise

bench-augment: setup ## what each augmenter brings with 300 training rows, into docs/benchmarks.md
	$(BIN)/python -c "from infra.stack.assets import prepare; from infra.stack.layout import Home; \
		from services.kit.config import home_dir; \
		prepare(Home(home_dir()), ['reviews', 'bge-small-zh', 'cilin', 'homophones'])"
	$(BIN)/python -m benchmarks.augmentation

bench-students: setup ## small students of a classifier: accuracy, latency and size, into docs/benchmarks.md
	$(BIN)/python -m benchmarks.students

bench-pii: setup ## recall, precision and speed of masking, beside Presidio, into docs/benchmarks.md
	$(BIN)/python -m benchmarks.pii

stubs: setup ## generates protos/gen
	$(BIN)/python protos/generate.py

docs: setup ## writes the documents generated from the code
	$(BIN)/python -m docs.generate

lock: ## resolves requirements.lock again
	$(BIN)/uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-annotate --no-header -q -o requirements.lock

format: setup ## formats code and protos
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/buf format -w --path protos/tidemill

clean: ## removes what checks and builds left in the folder
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
