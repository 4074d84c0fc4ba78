#!/bin/sh
# Install the service of this checkout with its CPU kernels: `install.sh VENV`, as the Dockerfile does.
# The variables DEVICE (cpu, cuda), EXTRAS and TORCH_INDEX are the Dockerfile's arguments.
set -eu
venv=$1
case ${DEVICE:-cpu} in
    cpu) index=${TORCH_INDEX-https://download.pytorch.org/whl/cpu} ;;
    cuda) index=${TORCH_INDEX-} ;; # pip's own index has torch for CUDA
    *) echo "DEVICE=$DEVICE: use cpu or cuda" >&2; exit 2 ;;
esac
python3 -m venv "$venv"
"$venv/bin/python" -m pip install --no-cache-dir --constraint constraints.txt ${index:+--extra-index-url "$index"} \
    ".[${EXTRAS:-service,gguf}]"
# With torch installed, the same package is built again, now with kernels for it (see `make wheel`). They are for x86-64
# alone, and a GPU has no use for them.
if [ "${DEVICE:-cpu}" = cpu ] && [ "$(uname -m)" = x86_64 ]; then
    ASSAY_KERNELS_PYTHON=$venv/bin/python "$venv/bin/python" -m pip install --no-cache-dir --no-deps --force-reinstall .
fi
