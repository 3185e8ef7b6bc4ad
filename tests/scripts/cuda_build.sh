#!/usr/bin/env bash
# Compiles and links Collimate with the `cuda` feature, on a machine that needs neither a GPU nor a CUDA toolkit: nvcc,
# headers and libraries come from NVIDIA's packages on PyPI, and where there is no driver, a libcuda whose every function
# says that it is a stub stands in for it.
#
#     tests/scripts/cuda_build.sh [ARGUMENTS OF CARGO, by default: build --release -p collimate --features cuda]
#
# The toolkit goes to $XDG_CACHE_HOME/collimate/cuda (1.2 GB), what is built to target/cuda. CUDA_COMPUTE_CAP says which
# GPUs it is for: 80 (A100 and later) unless set. With a toolkit of your own, `cargo build --features cuda` is enough.
set -euo pipefail
cd "$(dirname "$0")/../.."

VERSION=13.0
toolkit=${XDG_CACHE_HOME:-$HOME/.cache}/collimate/cuda
packages=("nvidia-cuda-nvcc==$VERSION.*" "nvidia-cuda-crt==$VERSION.*" "nvidia-nvvm==$VERSION.*" "nvidia-cuda-cccl==$VERSION.*"
    "nvidia-cuda-runtime==$VERSION.*" "nvidia-cuda-nvrtc==$VERSION.*" "nvidia-cublas==$VERSION.*" "nvidia-curand==10.4.0.*")

[[ -x $toolkit/bin/python ]] || python3 -m venv "$toolkit"
"$toolkit/bin/python" -m pip install --quiet "${packages[@]}"
CUDA_HOME=$("$toolkit/bin/python" -c 'import nvidia, pathlib; print(pathlib.Path(next(iter(nvidia.__path__))) / "cu13")')

# A linker looks for names without a version.
for library in "$CUDA_HOME"/lib/lib*.so.*; do
    ln -sf "$(basename "$library")" "${library%%.so.*}.so"
done
[[ -e $CUDA_HOME/lib64 ]] || ln -s lib "$CUDA_HOME/lib64"

libraries=$CUDA_HOME/lib
if ! ldconfig -p | grep -q 'libcuda\.so'; then
    stub=$toolkit/stub
    mkdir -p "$stub"
    cargo fetch --quiet
    cudarc=$(cargo metadata --format-version 1 --features collimate/cuda |
        "$toolkit/bin/python" -c 'import json, sys; print(next(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"))')
    # 34 is CUDA_ERROR_STUB_LIBRARY.
    grep -ohE 'fn cu[A-Z][A-Za-z0-9_]*' "$(dirname "$cudarc")"/src/driver/sys/*.rs | sort -u |
        sed -E 's/fn (.*)/int \1(void) { return 34; }/' >"$stub/cuda.c"
    cc -shared -o "$stub/libcuda.so.1" -Wl,-soname,libcuda.so.1 "$stub/cuda.c"
    ln -sf libcuda.so.1 "$stub/libcuda.so"
    libraries=$libraries:$stub
fi

export CUDA_HOME CUDA_PATH=$CUDA_HOME CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80} PATH=$CUDA_HOME/bin:$PATH
export LIBRARY_PATH=$libraries${LIBRARY_PATH:+:$LIBRARY_PATH} LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/cuda}
if (($# == 0)); then
    set -- build --release -p collimate --features cuda
fi
exec cargo "$@"
