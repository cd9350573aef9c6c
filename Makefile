# make setup   .venv with the shallop command          make demo   the main job on real data
# make test    everything that CI checks              make lock   refresh the locks
PYTHON ?= python3
PYTEST_ARGS ?=
VENV := .venv/bin

.PHONY: setup demo test check prepared lock clean

setup:
	@$(PYTHON) scripts/setup.py runtime
	@$(VENV)/python scripts/build_web.py

demo: setup
	@$(PYTHON) scripts/setup.py demo
	@$(VENV)/python scripts/demo.py

check:
	@$(PYTHON) scripts/setup.py dev
	$(VENV)/ruff check
	$(VENV)/ruff format --check --quiet
	$(VENV)/mypy
	$(VENV)/lint-imports

# Environments are built while unit tests run: a machine has more than one core.
test:
	@$(PYTHON) scripts/setup.py dev
	@$(MAKE) --no-print-directory -j 2 check prepared
	@$(VENV)/python scripts/warm.py >.venvs/warm.log 2>&1 & trap "kill $$! 2>/dev/null" EXIT; $(VENV)/pytest $(PYTEST_ARGS)

prepared:
	@$(VENV)/python scripts/build_web.py
	@$(PYTHON) scripts/setup.py demo registry-v1alpha3 kserve

lock:
	@$(PYTHON) scripts/setup.py dev
	$(VENV)/python scripts/lock.py

clean:
	rm -rf .venv .venvs build dist src/shallop/dashboard/static web/node_modules
