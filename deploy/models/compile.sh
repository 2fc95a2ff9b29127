#!/usr/bin/env bash
# Compile a Qwen2-VL checkpoint into one bmodel for the BM1684X:
#
#     deploy/models/compile.sh --model_path DIR [--seq_length 512] [--vision_seq_length 600] [--quantize f16]
#                              [--out models/BM1684X]
#
#   --model_path         Hugging Face directory
#   --seq_length         tokens of the context, prompt and answer together
#   --vision_seq_length  patches of one temporal grid (an image, or two frames of a clip), a multiple of 4
#   --quantize           f16 | bf16 | w8f16 | w4f16 | w4bf16
#   --out                gets NAME_bm1684x_QUANTIZE_seqN_1dev.bmodel, and a folder of work beside it
#
# Run again after an interruption, it goes on with the net where it stopped. Needs Python 3.10 for the compiler
# (PYTHON310, default python3.10 or pyenv's) and, to export, a Python with torch, onnx and transformers (PYTHON, default
# .venv/bin/python). The compiler gets an environment of its own: TPU_ENV, default .venv-tpu in the tree.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
tpu_env=${TPU_ENV:-$root/.venv-tpu}
model_path='' seq_length=512 vision_seq_length=600 quantize=f16 out=models/BM1684X

stop() { echo "compile.sh: $*" >&2; exit 1; }

# step OUTPUT LOG COMMAND...: some tools fail and exit with 0, so only a fresh output counts.
step() {
    local output=$1 log=$2
    shift 2
    rm -f "$output"
    "$@" >"$log" 2>&1 || stop "$(basename "$1") failed; $log ends with: $(tail -n 3 "$log")"
    [ -s "$output" ] || stop "$(basename "$1") left no $output although it says that it succeeded; see $log"
}

make_environment() {
    [ -e "$tpu_env/ready" ] && return
    local python=''
    for candidate in ${PYTHON310:-python3.10 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.10.*/bin/python}; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null && python=$candidate
    done
    [ -n "$python" ] || stop "tpu_mlir needs Python 3.10: install it, or name it in PYTHON310"
    for tool in cmake make gcc; do
        command -v $tool >/dev/null || stop "tpu_mlir needs $tool: apt install cmake make gcc"
    done
    echo "installing tpu_mlir into $tpu_env (300 MB)"
    rm -rf "$tpu_env"
    "$python" -m venv "$tpu_env"
    # The second line: what tpu_mlir uses and does not declare.
    "$tpu_env/bin/python" -m pip install --quiet --disable-pip-version-check tpu_mlir==1.30.2 \
        psutil flatbuffers==24.12.23 'setuptools<81' \
        onnx==1.14.1 onnxruntime==1.16.3 onnxsim==0.4.17 || stop "tpu_mlir cannot be installed"
    local package
    package=$(echo "$tpu_env"/lib/python3.10/site-packages/tpu_mlir)
    # It bundles glibc 2.35 beside libraries that run with the system's own; together they crash.
    rm -f "$package"/lib/third_party/lib{c,m,pthread}.so.*
    # Its ONNX route imports torch, 2 GB and more, only to copy an array.
    sed -i -e '/^import torch$/d' -e 's/torch\.tensor(\(inputs\[name\]\))\.numpy()/np.array(\1)/' \
        "$package/python/transform/OnnxOpt.py"
    touch "$tpu_env/ready"
}

while [ $# -gt 0 ]; do
    [ $# -gt 1 ] || stop "$1 needs a value"
    case $1 in
        --model_path) model_path=$2 ;;
        --seq_length) seq_length=$2 ;;
        --vision_seq_length) vision_seq_length=$2 ;;
        --quantize) quantize=$2 ;;
        --out) out=$2 ;;
        *) stop "there is no option $1; see the head of this file" ;;
    esac
    shift 2
done
[ -f "$model_path/config.json" ] || stop "--model_path ${model_path:-(missing)} holds no config.json"
case $quantize in f16 | bf16 | w8f16 | w4f16 | w4bf16) ;; *) stop "there is no quantisation $quantize" ;; esac

make_environment
model_path=$(cd "$model_path" && pwd)
name=$(basename "$model_path" | tr '[:upper:]' '[:lower:]')_bm1684x_${quantize}_seq${seq_length}_1dev
mkdir -p "$out"
work=$(cd "$out" && pwd)/$name-v$vision_seq_length bmodel=$(cd "$out" && pwd)/$name.bmodel
mkdir -p "$work/onnx"

if [ ! -e "$work/onnx/done" ] || [ "$model_path/config.json" -nt "$work/onnx/done" ]; then
    echo "exporting the nets"
    step "$work/onnx/lm_head.onnx" "$work/export.log" "${PYTHON:-$root/.venv/bin/python}" "$here/export_onnx.py" \
        --model_path "$model_path" --out "$work/onnx" \
        --seq_length "$seq_length" --vision_seq_length "$vision_seq_length"
    touch "$work/onnx/done"
fi

PATH=$tpu_env/bin:$PATH
parts=()
for onnx in "$work"/onnx/*.onnx; do
    net=$(basename "$onnx" .onnx)
    parts+=("$work/$net.bmodel")
    [ "$work/$net.bmodel" -nt "$onnx" ] && continue
    echo "compiling $net"
    kind=$quantize options=(--quant_output)
    case $net in
        block_cache_*) options+=(--addr_mode io_alone) ;;  # its inputs must outlive the other nets' runs
        block_*) ;;
        lm_head) options=() ;;&  # the host and greedy_head read fp32
        *) kind=${quantize#w[48]} ;;  # only the decoder's layers are worth fewer bits
    esac
    case $kind in w4*) options+=(--q_group_size 64) ;; esac
    # The tools leave files of fixed names where they run.
    mkdir -p "$work/$net.work" && cd "$work/$net.work"
    step "$net.mlir" transform.log model_transform.py --model_name "$net" --model_def "$onnx" --mlir "$net.mlir"
    step "$net.bmodel" deploy.log model_deploy.py --mlir "$net.mlir" --quantize "${kind^^}" --quant_input \
        --chip bm1684x "${options[@]}" --model "$net.bmodel"
    mv "$net.bmodel" "$work/"
    cd "$work" && rm -rf "$work/$net.work"
done

for part in "${parts[@]}"; do
    [ "$bmodel" -nt "$part" ] || fresh=no
done
if [ "${fresh:-yes}" = no ]; then
    step "$work/combined.bmodel" "$work/combine.log" model_tool --combine "${parts[@]}" -o "$work/combined.bmodel"
    mv "$work/combined.bmodel" "$bmodel"
fi
echo "$bmodel"
