#!/usr/bin/env bash
# Compile one exported net for the BM1684X, with the same compiler options as compile.sh:
#
#     deploy/models/compile_net.sh ONNX BMODEL LAYERS LM_HEAD [VISION]
#
# LAYERS, LM_HEAD and VISION are compile.sh's --quantize, --lm_head_quantize and --vision_quantize. It also writes NET.log
# beside NET.bmodel and, if the net has one, NET.profile: the compiler's estimate of its time on the chip. compile.sh sources
# this file for its functions.
set -euo pipefail

stop() { echo "$(basename "$0"): $*" >&2; exit 1; }

# step OUTPUT LOG COMMAND...: runs the command, which must write OUTPUT anew: some tools exit with 0 although they failed.
step() {
    local output=$1 log=$2
    shift 2
    rm -f "$output"
    "$@" >"$log" 2>&1 || stop "$(basename "$1") failed; $log ends with: $(tail -n 3 "$log")"
    [ -s "$output" ] || stop "$(basename "$1") exited with 0 but wrote no $output; see $log"
}

# choose_options NET LAYERS LM_HEAD VISION: sets `options` to the compiler options of a net.
choose_options() {
    local kind=${2#w[48]}  # 4 or 8 bits are only for the decoder layers, and for lm_head and the ViT if asked
    options=()
    case $1 in
        block_*) kind=$2 ;;
        lm_head) kind=$3 ;;
        vit) kind=$4 ;;
    esac
    case $1 in
        lm_head) options+=(--quant_input) ;;                   # the host and greedy_head read fp32
        greedy_head) kind=f32 ;;                               # it reads lm_head's fp32 output, whose sum is too large for f16
        block_cache_*) options+=(--quant_input --quant_output --addr_mode io_alone) ;;  # the KV cache stays in its input tensors
        *) options+=(--quant_input --quant_output) ;;
    esac
    case $kind in w4*) options+=(--q_group_size 64) ;; esac
    options+=(--quantize "${kind^^}" --chip bm1684x)
}

# compile_net ONNX BMODEL LAYERS LM_HEAD [VISION]: compiles one net. Needs the compiler on PATH, and absolute paths.
compile_net() {
    local onnx=$1 bmodel=$2 made=${2%.bmodel} net name options transform=()
    net=$(basename "$made") name=$(basename "$onnx" .onnx | cut -d@ -f1)
    # To simplify a graph, the compiler copies its weights many times: 22 GB for a vocabulary of 152,000 × 2,560. There is
    # nothing to simplify in lm_head. The option takes any text for true.
    [ "$name" != lm_head ] || transform=(--do_onnx_sim "")
    choose_options "$name" "$3" "$4" "${5:-${3#w[48]}}"
    # The tools write files with fixed names into the current folder.
    rm -rf "$made.work" && mkdir "$made.work"
    (
        cd "$made.work"
        # The compiler caches compiled kernels in ~/.ppl, without a lock. Two compilations at the same time could read each
        # other's incomplete kernels and write wrong constants, without an error.
        export HOME=$PWD
        step "$net.mlir" "$made.log" model_transform.py --model_name "$name" --model_def "$onnx" --mlir "$net.mlir" \
            "${transform[@]}"
        step "$net.bmodel" "$made.log" model_deploy.py --mlir "$net.mlir" "${options[@]}" --model "$net.bmodel"
        if [ -e compiler_profile_0.txt ]; then mv compiler_profile_0.txt "$made.profile"; fi
        mv "$net.bmodel" "$bmodel"
    )
    rm -rf "$made.work"
}

[ "${BASH_SOURCE[0]}" = "$0" ] || return 0

[ $# = 4 ] || [ $# = 5 ] || { sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "$0" >&2; exit 2; }
tpu_env=$("$(dirname "$0")/tpu_env.sh") || exit 1
PATH=$tpu_env/bin:$PATH
compile_net "$(realpath "$1")" "$(realpath "$2")" "${@:3}"
