# make train    a virtual environment, and in it a small BERT trained on the documentation that Python ships
# make test     every test that this machine can run
# make parity   the same numbers as torch and transformers, live (installs both)
# make bench    how fast; PEERS=1 beside transformers

PYTHON ?= python3
BIN := .venv/bin

train: .venv/installed
	$(BIN)/python train.py

test: .venv/installed-test
	$(BIN)/python -m pytest

parity: .venv/installed-parity
	$(BIN)/python -m pytest tests/test_parity_*.py tests/test_bench.py

bench: .venv/installed$(if $(PEERS),-parity)
	$(BIN)/python bench.py $(if $(PEERS),--peers)

# Debian ships python3 without ensurepip; there a pip beside it can still fill the new environment.
.venv/bin/python:
	$(PYTHON) -m venv .venv || $(PYTHON) -m venv --without-pip .venv
	$(BIN)/python -m pip --version || $(PYTHON) -m pip --python $(BIN)/python install pip || \
		{ rm -rf .venv; echo "error: this python3 has neither venv nor pip; install python3-venv" >&2; exit 2; }

.venv/installed: .venv/bin/python setup.cfg
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/installed-test: .venv/bin/python setup.cfg
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

.venv/installed-parity: .venv/bin/python setup.cfg
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,parity]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis

.PHONY: train test parity bench clean
