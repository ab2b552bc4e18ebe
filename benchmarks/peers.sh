#!/usr/bin/env bash
# Installs the servers that `compare.py` measures Axion beside, each in an environment of its own.
# What is there already is kept.
#
#   benchmarks/peers.sh [vllm] [llama.cpp] [transformers] [mistralrs]     all without an argument
#
# AXION_PEERS_DIR  where they go (default ~/.cache/axion/peers): about 6 GB
# PYTHON           makes the environments (default python3)
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu spares torch's libraries for CUDA.
# JOBS             compiler processes of llama.cpp (default 2)
set -euo pipefail

TRANSFORMERS_VERSION=5.23.0
ACCELERATE_VERSION=1.15.0
TORCH_VERSION=2.13.0
MISTRALRS_VERSION=0.9.5

here=$(cd "$(dirname "$0")" && pwd)
root=${AXION_PEERS_DIR:-$HOME/.cache/axion/peers}
mkdir -p "$root/bin"

install_transformers() {
    local venv=$root/transformers/venv
    [ -e "$venv/.installed-$TRANSFORMERS_VERSION" ] && return
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --upgrade pip
    "$venv/bin/python" -m pip install --quiet "torch==$TORCH_VERSION" \
        "transformers[serving]==$TRANSFORMERS_VERSION" "accelerate==$ACCELERATE_VERSION"
    ln -sf "$venv/bin/transformers" "$root/bin/transformers"
    touch "$venv/.installed-$TRANSFORMERS_VERSION"
}

install_mistralrs() {
    local venv=$root/mistralrs/venv
    [ -e "$venv/.installed-$MISTRALRS_VERSION" ] && return
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --upgrade pip
    "$venv/bin/python" -m pip install --quiet "mistralrs==$MISTRALRS_VERSION"
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$venv/bin/python" >"$root/bin/mistralrs-python"
    chmod +x "$root/bin/mistralrs-python"
    touch "$venv/.installed-$MISTRALRS_VERSION"
}

for name in ${@:-vllm llama.cpp transformers mistralrs}; do
    case $name in
        # With the compiler's full optimization, which the tests do without.
        vllm | llama.cpp) AXION_ENGINES_DIR=$root OPTIMIZE=-O3 "$here/../tests/engines/install.sh" "$name" ;;
        transformers) install_transformers ;;
        mistralrs) install_mistralrs ;;
        *) echo "Unknown peer $name: vllm, llama.cpp, transformers or mistralrs." >&2 && exit 2 ;;
    esac
done
