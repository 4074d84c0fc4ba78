#!/bin/sh
# Install the service of this checkout, and build its CPU kernels: `install.sh VENV CACHE`, as the Dockerfile does.
# The variables DEVICE (cpu, cuda), EXTRAS and TORCH_INDEX are the Dockerfile's arguments.
set -eu
venv=$1 cache=$2
case ${DEVICE:-cpu} in
    cpu) index=${TORCH_INDEX-https://download.pytorch.org/whl/cpu} ;;
    cuda) index=${TORCH_INDEX-} ;; # pip's own index has torch for CUDA
    *) echo "DEVICE=$DEVICE: use cpu or cuda" >&2; exit 2 ;;
esac
mkdir -p "$cache"
python3 -m venv "$venv"
"$venv/bin/python" -m pip install --no-cache-dir --constraint constraints.txt ${index:+--extra-index-url "$index"} \
    ".[${EXTRAS:-service,gguf}]"
# The kernels are for x86-64 alone. A GPU has no use for them.
if [ "${DEVICE:-cpu}" = cpu ] && [ "$(uname -m)" = x86_64 ]; then
    XDG_CACHE_HOME=$cache "$venv/bin/python" -c \
        'from assay_service.scoring.kernels.build import build_all; print("kernels:", *build_all())'
fi
