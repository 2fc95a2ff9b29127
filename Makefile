# Two commands: `make demo` and `make test`. Both set up what they need in .venv, from any Python >= 3.11.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
BIN = .venv/bin
# Processes with a server each. One takes tests from another when it has none left. Three on two cores: many tests wait.
PARALLEL = --numprocesses 3 --dist worksteal
# The emulator and the compiler do not wait.
TPU_PARALLEL = --numprocesses 2 --dist worksteal
# `make test-proofs PROOFS="proof and not long"` leaves out the proofs that take minutes.
PROOFS = proof
# Makes the emulator's idle threads yield the CPU, for machines with few cores.
YIELD = $(CURDIR)/build/yield.so
SHELL = /bin/bash
.SHELLFLAGS = -o pipefail -c

.PHONY: demo test test-proofs test-tpu test-tpu-full test-prometheus test-browser test-box test-images test-arm64 bench bench-host bench-w4 bench-tpu bench-fleet figures fuzz lint clean

demo: .venv/demo  ## Caption rendered clips through a server and a worker of its own; see demo-out/report.html
	$(BIN)/sailq demo --out demo-out

test: .venv/dev  ## Static checks and tests; eight minutes
	$(BIN)/python -m pytest $(PARALLEL)

test-proofs: .venv/dev  ## The long proofs: accuracy, parity, crashes, endurance, fuzzing, box set-up, pages
	$(BIN)/python -m pytest -m "$(PROOFS) and alone"
	$(BIN)/python -m pytest $(PARALLEL) -m "$(PROOFS) and not alone"

test-tpu: .venv/dev $(YIELD)  ## Compile sailq-tiny and random models for the BM1684X and run them on that chip's emulator; needs Python 3.10
	LD_PRELOAD=$(YIELD) $(BIN)/python -m pytest $(TPU_PARALLEL) -m tpu tests/emulator

test-tpu-full: .venv/dev $(YIELD)  ## The same with every prompt and number of slots
	LD_PRELOAD=$(YIELD) $(BIN)/python -m pytest $(TPU_PARALLEL) -m tpu tests/emulator --full

test-prometheus: .venv/dev  ## Test the alerts and the dashboard with a real Prometheus (apt install prometheus)
	$(BIN)/python -m pytest -m prometheus tests/integration/test_prometheus.py

test-browser: .venv/dev  ## Drive the page in Chromium and check it with axe (apt install chromium chromium-driver fonts-noto-cjk npm)
	$(BIN)/python -m pytest -m browser tests/browser

test-box: .venv/dev  ## Test deploy/se7 on a machine that systemd-nspawn boots; as root, with systemd-container and mmdebstrap
	$(BIN)/python -m pytest -m box tests/box

test-images: .venv/dev  ## Build the images and run them; as root, with buildah and mmdebstrap
	$(BIN)/python -m pytest -m images tests/integration/test_container_images.py

test-arm64: .venv/dev  ## Install sailq on an emulated arm64 and run it; as root, with qemu-user-static and mmdebstrap
	$(BIN)/python -m pytest -m arm64 tests/integration/test_arm64.py

bench: .venv/dev  ## Compare the engine with transformers and the service with the engine, and measure the host's time; 15 minutes
	$(BIN)/python -m pytest -m bench tests/bench --ignore tests/bench/test_w4.py --ignore tests/bench/test_device_thread.py

bench-host: .venv/dev  ## Time what the host costs a BM1684X at a step, against a stand-in for SAIL; seven minutes
	$(BIN)/python -m pytest -m bench tests/bench/test_device_thread.py

bench-w4: .venv/dev  ## Compare a 2B-size model's 4-bit nets with float32 ones on a CPU; half an hour, 18 GB of disk
	$(BIN)/python -m pytest -m bench tests/bench/test_w4.py

bench-tpu: .venv/dev  ## Print the compiler's estimates for real sizes on a BM1684X beside published figures; hours; an interrupted run goes on where it stopped
	$(BIN)/python -m tests.bench.bm1684x --out bench-out

bench-fleet: .venv/dev  ## Measure one server with up to 1,000 simulated boxes; eight minutes on an idle machine
	$(BIN)/python -m tests.bench.fleet --out bench-out

figures: .venv/dev  ## Print the figures of tests/README.md, from the tests that check their limits
	$(BIN)/python -m pytest --quiet $(PARALLEL) -m "not tpu and not bench and not prometheus and not box and not images and not arm64 and not browser" | grep --text "^figure:"

fuzz: .venv/dev  ## Give a million hostile inputs to everything that reads foreign data; five minutes
	$(BIN)/python tests/fuzz/fuzz.py --keep

lint: .venv/dev  ## Only the static checks
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
