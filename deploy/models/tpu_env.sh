#!/usr/bin/env bash
# Make the TPU compiler's environment if it does not exist, and print its path:
#
#     deploy/models/tpu_env.sh
#
# It contains `tpu_mlir`: the compiler, BMRuntime, and the BM1684X's C model on which `sailq worker --device emulator` runs.
# TPU_ENV sets the path; the default is .venv-tpu in the tree. It needs Python 3.10 (PYTHON310, default python3.10 or pyenv's), cmake,
# make and gcc, but not torch.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
env=${TPU_ENV:-$root/.venv-tpu}
made=$env/made-5  # increase the number if the installation below changes

stop() { echo "tpu_env.sh: $*" >&2; exit 1; }

python310() {
    local candidate pyenv=${PYENV_ROOT:-$HOME/.pyenv}
    # If this folder does not exist, look for the versions beside the pyenv command.
    [ -d "$pyenv/versions" ] || pyenv=$(dirname "$(dirname "$(readlink -f "$(command -v pyenv || echo /none/none)")")")
    for candidate in ${PYTHON310:-python3.10 "$pyenv"/versions/3.10.*/bin/python}; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null || continue
        echo "$candidate"
        return
    done
    stop "tpu_mlir needs Python 3.10: install it, or set PYTHON310 to its path"
}

install() {
    local python tool package
    python=$(python310)
    for tool in cmake make gcc; do
        command -v $tool >/dev/null || stop "tpu_mlir needs $tool: apt install cmake make gcc"
    done
    echo "installing tpu_mlir into $env (300 MB)" >&2
    rm -rf "$env"
    "$python" -m venv "$env" || stop "this Python has no venv module: apt install python3.10-venv"
    # The second line lists packages that tpu_mlir uses but does not declare.
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check tpu_mlir==1.30.2 \
        psutil flatbuffers==24.12.23 'setuptools<81' ml_dtypes \
        onnx==1.14.1 onnxruntime==1.16.3 onnxsim==0.4.17 >&2 || stop "tpu_mlir cannot be installed"
    package=$(echo "$env"/lib/python3.10/site-packages/tpu_mlir)
    # The package bundles glibc 2.35. It crashes together with libraries that load the system's glibc.
    rm -f "$package"/lib/third_party/lib{c,m,pthread}.so.*
    without_torch "$package"
    stand_in_for_parallel
    touch "$made"
}

# Makes tpu_mlir run without torch, which takes gigabytes. It uses torch only to copy an array, to read safetensors and to
# name dtypes.
without_torch() {
    sed -i -e '/^import torch$/d' -e 's/torch\.tensor(\(inputs\[name\]\))\.numpy()/np.array(\1)/' \
        "$1/python/transform/OnnxOpt.py"
    sed -i -e 's/^import os, torch$/import os/' -e 's/safe_open(file_path, "pt")/safe_open(file_path, "np")/' \
        -e 's/if data\.dtype in \[torch.*/if data.dtype.name in ("float16", "bfloat16"):/' -e 's/data\.float()\.numpy()/data.astype("float32")/' \
        -e 's/return data\.numpy()/return data/' "$1/python/llm/LlmLoad.py"
    : >"$1/python/llm/__init__.py"  # the original imports the converters of all models, and some need torch
    mkdir -p "$env/no_torch"  # only on llm_convert.py's PYTHONPATH: other tools check whether torch exists
    cat >"$env/no_torch/torch.py" <<'PYTHON'
"""Replaces torch: to convert the families that sailq serves, llm_convert.py uses only these names."""
float16, bfloat16, float32 = "float16", "bfloat16", "float32"
PYTHON
}

# llm_convert.py runs its compilers with GNU parallel, as `parallel -j N ... < commands`.
stand_in_for_parallel() {
    cat >"$env/bin/parallel" <<'BASH'
#!/bin/bash
# Replaces GNU parallel: runs the commands on stdin, $2 at a time, and fails if one of them fails. Each command gets its own
# HOME, because the compiler caches kernels there without a lock.
exec xargs --no-run-if-empty --delimiter='\n' --max-procs="$2" --max-args=1 \
    bash -c 'HOME=$(mktemp -d) && export HOME && trap "rm -rf \"$HOME\"" EXIT && eval "$1"' stand-in
BASH
    chmod +x "$env/bin/parallel"
}

if [ ! -e "$made" ]; then
    mkdir -p "$(dirname "$env")"
    exec 8>"$env.lock"
    flock 8  # waits for another run that installs it
    [ -e "$made" ] || install
fi
echo "$env"
