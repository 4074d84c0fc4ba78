#!/bin/bash
# Measure Assay on one NVIDIA GPU, in at most ten minutes: `bash benchmarks/gpu.sh [OPTION]...`, with the options of
# `python -m benchmarks.gpu`. It installs the service and torch from PyPI into a fresh environment, in 200 s at most.
# PYTHON=FILE takes an environment that has both instead. Results: benchmarks/results/gpu.{json,md}, also of a run of
# which parts failed. The exit status is 1 unless parity and invariance hold, and 2 if nothing could be installed.
set -u
cd "$(dirname "$0")/.." || exit 2
if [ -z "${PYTHON:-}" ]; then
    made=$(mktemp -d) || exit 2
    trap 'rm -rf "$made"' EXIT
    # pip's own index has torch for CUDA.
    if ! { python3 -m venv "$made/venv" && timeout 200 "$made/venv/bin/python" -m pip install --quiet \
        --constraint constraints.txt '.[service]'; }; then
        echo "benchmarks/gpu.sh: the installation failed or took more than 200 s; set PYTHON to an environment" >&2
        exit 2
    fi
    PYTHON=$made/venv/bin/python
fi
nvidia-smi || echo "benchmarks/gpu.sh: nvidia-smi cannot be run" >&2
# The limit of Python's own clock is 390 s; this one also ends a process that hangs.
PYTHONPATH=$PWD/service:$PWD/clients:$PWD timeout --kill-after 5 395 "$PYTHON" -m benchmarks.gpu "$@"
status=$?
[ "$status" -eq 0 ] || exit 1
