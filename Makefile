# The two commands of the README are `make demo` and `make test`; both install what is missing first.
PYTHON := .venv/bin/python
# Tests and tools never need the network once installed.
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test check as-i-am fabric e2e user kernels esp-packets esp-job bench fuzz clean install

demo: install
	.venv/bin/cloister demo
	@echo 'First put the command on your PATH: export PATH="$(CURDIR)/.venv/bin:$$PATH"'

# Most of the time tests wait for what must not come: the two runs go side by side.
test: check
	@$(MAKE) --no-print-directory -j2 --output-sync=line as-i-am user

as-i-am: install
	@$(MAKE) --no-print-directory fabric
	@$(MAKE) --no-print-directory e2e

# Format, lint, types, layers, and every test that needs no privilege: under a minute.
check: install
	$(PYTHON) -m ruff format --check src tests bench
	$(PYTHON) -m ruff check src tests bench
	$(PYTHON) -m mypy
	.venv/bin/lint-imports --no-logo
	$(PYTHON) -m pytest -q -n 4 --ignore tests/fabric --ignore tests/e2e

# Real packets, in throw-away private worlds: two files side by side, because tests mostly wait.
fabric: install
	$(PYTHON) -m cloister.kernel.holder --exec $(PYTHON) -m pytest -q -n 2 --dist loadfile tests/fabric

# A whole Cloister, driven by real clients: three of them side by side.
e2e: install
	$(PYTHON) -m pytest -q -n 3 --dist loadfile tests/e2e

# The same two again as an unprivileged user (made here, as root); without root they already ran so.
user: install
	scripts/as-user.sh

# What this host's kernel may not have, under Debian's own in an emulated machine: as root, some twenty minutes.
kernels: install
	scripts/in-vm.sh $(MAKE) esp-packets esp-job
	VM_USER=1 scripts/in-vm.sh $(MAKE) esp-job ESP_JOB='-k also_encrypted'

esp-packets:
	$(PYTHON) -m cloister.kernel.holder --exec $(PYTHON) -m pytest -q tests/fabric/test_isolation_packets.py tests/kernel

esp-job:
	$(PYTHON) -m pytest -q tests/e2e/test_isolation.py $(ESP_JOB)

bench:
	@scripts/install.sh curl wrk
	$(PYTHON) -m bench

# The long run of the property tests.
fuzz: install
	CLOISTER_FUZZ=1 $(PYTHON) -m pytest -q -n 4 --ignore tests/fabric --ignore tests/e2e
	CLOISTER_FUZZ=1 $(PYTHON) -m cloister.kernel.holder --exec $(PYTHON) -m pytest -q tests/fabric

install:
	@scripts/install.sh

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache bench/results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
