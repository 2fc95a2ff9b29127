# Two commands: `make demo` and `make test`. Both set up what they need in .venv, from any Python >= 3.11.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
BIN = .venv/bin
# Two processes with a server each. One takes tests from the other when it has none left.
PARALLEL = --numprocesses 2 --dist worksteal
# Makes the emulator's threads share two cores well.
YIELD = $(CURDIR)/build/yield.so
SHELL = /bin/bash
.SHELLFLAGS = -o pipefail -c

.PHONY: demo test test-proofs test-tpu test-tpu-full test-prometheus test-box test-images test-arm64 bench bench-tpu bench-fleet figures fuzz lint clean

demo: .venv/demo  ## Caption rendered clips through a server and a worker of its own; see demo-out/report.html
	$(BIN)/sailq demo --out demo-out

test: .venv/dev  ## Static checks and tests; six minutes
	$(BIN)/python -m pytest $(PARALLEL)

test-proofs: .venv/dev  ## The long proofs: accuracy, parity, crashes, endurance, fuzzing, box set-up, pages
	$(BIN)/python -m pytest -m "proof and alone"
	$(BIN)/python -m pytest $(PARALLEL) -m "proof and not alone"

test-tpu: .venv/dev $(YIELD)  ## Compile sailq-tiny for the BM1684X and run it on that chip's emulator; needs Python 3.10
	LD_PRELOAD=$(YIELD) $(BIN)/python -m pytest $(PARALLEL) -m tpu tests/emulator

test-tpu-full: .venv/dev $(YIELD)  ## The same with every prompt
	LD_PRELOAD=$(YIELD) $(BIN)/python -m pytest $(PARALLEL) -m tpu tests/emulator --full

test-prometheus: .venv/dev  ## Alerts and dashboard asked of a real Prometheus; needs one (apt install prometheus)
	$(BIN)/python -m pytest -m prometheus tests/integration/test_prometheus.py

test-box: .venv/dev  ## deploy/se7 on a machine that systemd-nspawn boots; as root, with systemd-container and mmdebstrap
	$(BIN)/python -m pytest -m box tests/box

test-images: .venv/dev  ## Build the images and run them; as root, with buildah and mmdebstrap
	$(BIN)/python -m pytest -m images tests/integration/test_container_images.py

test-arm64: .venv/dev  ## Install sailq on an emulated arm64 and ask it; as root, with qemu-user-static and mmdebstrap
	$(BIN)/python -m pytest -m arm64 tests/integration/test_arm64.py

bench: .venv/dev  ## The engine against transformers, the service against the engine, the host's own time; a quarter of an hour
	$(BIN)/python -m pytest -m bench tests/bench

bench-tpu: .venv/dev  ## The compiler's estimate of Qwen2-VL-7B on a BM1684X, beside what was published; half an hour
	$(BIN)/python -m tests.bench.bm1684x --out bench-out

bench-fleet: .venv/dev  ## Up to 1,000 simulated boxes on one server; eight minutes, with nothing else to do
	$(BIN)/python -m tests.bench.fleet --out bench-out

figures: .venv/dev  ## The figures of tests/README.md, printed by the tests that hold them to their bounds
	$(BIN)/python -m pytest --quiet $(PARALLEL) -m "not tpu and not bench and not prometheus and not box and not images and not arm64" | grep --text "^figure:"

fuzz: .venv/dev  ## A million hostile inputs for all that reads what others wrote; five minutes
	$(BIN)/python tests/fuzz/fuzz.py --keep

lint: .venv/dev  ## Static checks alone
	$(BIN)/python -m pytest tests/unit/test_static.py

$(YIELD): tests/emulator/yield.c
	@mkdir -p $(@D)
	$(CC) -O2 -shared -fPIC -Wall -Werror -o $@ $<

clean:
	rm -rf .venv demo-out build *.egg-info

.venv/demo .venv/dev: .venv/%: pyproject.toml
	@test -n "$(PYTHON)" || { echo "sailq needs Python 3.11 or newer: apt install python3 python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "This Python has no venv module: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@
