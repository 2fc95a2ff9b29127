#!/usr/bin/env bash
# Compile a checkpoint of Qwen2-VL, Qwen2.5-VL or Qwen3-VL into one bmodel for the BM1684X:
#
#     deploy/models/compile.sh --model_path DIR [--quantize w4f16] [--batch 8] [...]
#
#   --model_path         Hugging Face directory
#   --seq_length         tokens of the context, prompt and answer together (512)
#   --vision_seq_length  maximum patches of one temporal grid (an image, or two frames of a clip), a multiple of 4 (1024)
#   --prefill_lengths    more prompt lengths to compile, besides seq_length, such as 128,256 (none)
#   --vision_lengths     more ViT sizes to compile, besides vision_seq_length, in patches, such as 256,512 (none)
#   --batch              sequences that are decoded together (1)
#   --quantize           weights of the decoder layers: f16 | bf16 | w8f16 | w4f16 | w4bf16; w4 in groups of 64 (f16)
#   --lm_head_quantize   weights of lm_head, same choices (f16, or bf16 if --quantize ends in bf16)
#   --vision_quantize    weights of the ViT, same choices (f16, or bf16 if --quantize ends in bf16)
#   --route              onnx: the nets of export_onnx.py (default). llm_convert: TPU-MLIR's own converter, quicker, batch 1;
#                        it takes its own options after `--`: --dynamic, --do_sample, --use_history_kv, --chunk_length N, ...
#   --out                folder for MODEL_int4_seq512_1dev.bmodel and, while compiling, for its folder .work (models/BM1684X)
#   --jobs               number of nets compiled at the same time; one layer of a 7B takes 10 GB of memory (1)
#   --check              check the options, print the path that the bmodel would have, and stop
#
# After an interruption, run it again: it continues with the net where it stopped. It needs what tpu_env.sh needs and, to
# export, a Python with torch, onnx and transformers (PYTHON, default .venv/bin/python: `make .venv/dev`).
set -euo pipefail
trap 'jobs -p | xargs -r kill 2>/dev/null || true' EXIT

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/compile_net.sh"
root=$(cd "$here/../.." && pwd)
export_python=${PYTHON:-$root/.venv/bin/python}
model_path='' seq_length=512 vision_seq_length=1024 prefill_lengths='' vision_lengths='' batch=1 jobs=1
quantize=f16 lm_head_quantize='' vision_quantize='' route=onnx out=models/BM1684X check=no converter=()

wrong() { echo "compile.sh: $*; see --help" >&2; exit 2; }

read_options() {
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "$here/compile.sh"; exit ;;
            --check) check=yes; shift; continue ;;
            --) shift; converter=("$@"); break ;;
        esac
        [ $# -gt 1 ] || wrong "$1 needs a value"
        case $1 in
            --model_path) model_path=$2 ;;
            --seq_length) seq_length=$2 ;;
            --vision_seq_length) vision_seq_length=$2 ;;
            --prefill_lengths) prefill_lengths=$2 ;;
            --vision_lengths) vision_lengths=$2 ;;
            --batch) batch=$2 ;;
            --jobs) jobs=$2 ;;
            --quantize) quantize=$2 ;;
            --lm_head_quantize) lm_head_quantize=$2 ;;
            --vision_quantize) vision_quantize=$2 ;;
            --route) route=$2 ;;
            --out) out=$2 ;;
            *) wrong "unknown option $1" ;;
        esac
        shift 2
    done
}

check_options() {
    local value positions
    [ -n "$model_path" ] || wrong "--model_path is missing"
    [ -f "$model_path/config.json" ] || wrong "--model_path $model_path contains no config.json"
    compgen -G "$model_path/*.safetensors" >/dev/null || wrong "--model_path $model_path contains no *.safetensors"
    for value in "$seq_length" "$vision_seq_length" "$batch" "$jobs"; do
        [[ $value =~ ^[1-9][0-9]{0,5}$ ]] || wrong "'$value' is not a number from 1 to 999999"
    done
    positions=$(grep -o '"max_position_embeddings": *[0-9]*' "$model_path/config.json" | head -n 1) || true
    positions=${positions##*[: ]}
    [ "$seq_length" -gt 1 ] && [ "$seq_length" -le "${positions:-$seq_length}" ] ||
        wrong "--seq_length is $seq_length; this model takes 2 to ${positions:-999999}"
    for value in ${prefill_lengths:+"$prefill_lengths"} ${vision_lengths:+"$vision_lengths"}; do
        [[ $value =~ ^[1-9][0-9]{0,5}(,[1-9][0-9]{0,5})*$ ]] || wrong "'$value' is not a list of numbers such as 128,256"
        [ -z "$(tr , '\n' <<<"$value" | sort | uniq -d)" ] || wrong "'$value' contains a number twice"
    done
    for value in "$vision_seq_length" ${vision_lengths//,/ }; do
        [ $((value % 4)) = 0 ] || wrong "$value patches are not a multiple of 4: the ViT merges 2 x 2 patches"
    done
    for value in ${vision_lengths//,/ }; do
        [ "$value" -lt "$vision_seq_length" ] || wrong "a ViT of $value patches is not smaller than --vision_seq_length"
    done
    for value in ${prefill_lengths//,/ }; do
        [ "$value" -lt "$seq_length" ] || wrong "a prompt of $value tokens is not shorter than --seq_length"
    done
    for value in "$quantize" ${lm_head_quantize:+"$lm_head_quantize"} ${vision_quantize:+"$vision_quantize"}; do
        case $value in f16 | bf16 | w8f16 | w4f16 | w4bf16) ;; *) wrong "unknown quantisation '$value'" ;; esac
    done
    half=${quantize#w[48]}
    : "${lm_head_quantize:=$half}" "${vision_quantize:=$half}"
    [ "${lm_head_quantize#w[48]}" = "$half" ] || wrong "--quantize and --lm_head_quantize must both use f16 or both use bf16"
    [ "${vision_quantize#w[48]}" = "$half" ] || wrong "--quantize and --vision_quantize must both use f16 or both use bf16"
    case $route in
        onnx) [ ${#converter[@]} = 0 ] || wrong "options after -- need --route llm_convert" ;;
        llm_convert)
            [ "$batch" = 1 ] || wrong "--route llm_convert fails or makes wrong bmodels for --batch above 1: use --route onnx"
            [ "$lm_head_quantize$vision_quantize" = "$half$half" ] || wrong "--lm_head_quantize and --vision_quantize need --route onnx"
            [ -z "$prefill_lengths$vision_lengths" ] || wrong "--prefill_lengths and --vision_lengths need --route onnx; llm_convert has -- --dynamic" ;;
        *) wrong "unknown route '$route': use onnx or llm_convert" ;;
    esac
}

# Everything that determines the bmodel. If it has changed, the files of an earlier run are not used.
origin() {
    echo "$route $seq_length $vision_seq_length $prefill_lengths $vision_lengths $batch $quantize $lm_head_quantize $vision_quantize" "${converter[@]}"
    stat -L -c '%n %s %Y' "$model_path"/*.json "$model_path"/*.safetensors
    cat "$here"/*.py "$here"/families/*.py "$here"/*.sh | cksum
}

by_onnx() {
    local parts=() onnx part count number=0 running=0
    if [ ! -e "$work/exported" ]; then
        [ -x "$(command -v "$export_python")" ] || stop "$export_python does not exist, and exporting needs it: run make .venv/dev, or set PYTHON"
        echo "exporting the nets"
        export_python=$(realpath --no-symlinks "$(command -v "$export_python")")
        (
            cd "$root"  # where Python finds deploy.models
            step "$work/onnx/lm_head.onnx" "$work/export.log" "$export_python" -m deploy.models.export_onnx \
                --model_path "$model_path" --out "$work/onnx" --batch "$batch" \
                --seq_length "$seq_length" --vision_seq_length "$vision_seq_length" \
                ${prefill_lengths:+--prefill_lengths "$prefill_lengths"} ${vision_lengths:+--vision_lengths "$vision_lengths"}
        )
        touch "$work/exported"
    fi
    count=$(find "$work/onnx" -name '*.onnx' | wc -l)
    for onnx in "$work"/onnx/*.onnx; do
        part=$work/$(basename "$onnx" .onnx).bmodel number=$((number + 1))
        parts+=("$part")
        [ -s "$part" ] && continue
        echo "compiling $(basename "$onnx" .onnx) ($number of $count)"
        compile_net "$onnx" "$part" "$quantize" "$lm_head_quantize" "$vision_quantize" &
        running=$((running + 1))
        [ $running -lt "$jobs" ] || { wait -n || exit 1; running=$((running - 1)); }
    done
    for ((; running > 0; running--)); do wait -n || exit 1; done
    step "$work/$name.bmodel" "$work/combine.log" model_tool --combine "${parts[@]}" -o "$work/$name.bmodel"
}

by_llm_convert() {
    local made side
    # llm_convert.py takes the ViT's size in pixels: a square of 2 x 2 patches for each 4 patches.
    side=$(grep -o '"patch_size": *[0-9]*' "$model_path/config.json" | head -n 1) || true
    side=${side##*[: ]}
    side=$((2 * ${side:-14}))
    echo "converting"
    rm -rf "$work/llm" && mkdir "$work/llm"
    PYTHONPATH=$tpu_env/no_torch llm_convert.py --model_path "$model_path" --seq_length "$seq_length" --quantize "$quantize" --chip bm1684x \
        --max_pixels "$side,$((side * vision_seq_length / 4))" --out_dir "$work/llm" "${converter[@]}" >"$work/llm_convert.log" 2>&1 ||
        stop "llm_convert.py failed; $work/llm_convert.log ends with: $(tail -n 3 "$work/llm_convert.log")"
    made=$(compgen -G "$work/llm/*.bmodel") || stop "llm_convert.py exited with 0 but wrote no bmodel; see $work/llm_convert.log"
    mv "$made" "$work/$name.bmodel"
}

read_options "$@"
check_options
model_path=$(cd "$model_path" && pwd)
bits=${quantize/#f16/fp16} bits=${bits/#w4f16/int4} bits=${bits/#w4bf16/int4-bf16} bits=${bits/#w8f16/int8}
more=''
[ -z "$prefill_lengths" ] || more+=_p${prefill_lengths//,/-}
[ -z "$vision_lengths" ] || more+=_v${vision_lengths//,/-}
[ "$batch" = 1 ] || more+=_b$batch
[ "$lm_head_quantize" = "$half" ] || more+=_head-$lm_head_quantize
[ "$vision_quantize" = "$half" ] || more+=_vit-$vision_quantize
name=$(basename "$model_path" | tr '[:upper:]' '[:lower:]')_${bits}_seq$seq_length${more}_1dev
if [ "$route" = llm_convert ]; then
    name+=_llm$(printf %s "${converter[@]}" | sed 's/--/_/g')
fi
if [ "$check" = yes ]; then
    echo "$out/$name.bmodel"
    exit
fi

mkdir -p "$out"
bmodel=$(cd "$out" && pwd)/$name.bmodel work=$(cd "$out" && pwd)/$name.work
exec 9>"$bmodel.lock"
flock 9  # waits for another run that makes the same bmodel, and then uses that bmodel
origin=$(origin)
if [ -s "$bmodel" ] && [ "$(cat "$bmodel.origin" 2>/dev/null)" = "$origin" ]; then
    echo "$bmodel"
    exit
fi
[ "$(cat "$work/origin" 2>/dev/null)" = "$origin" ] || rm -rf "$work"
mkdir -p "$work/onnx"
echo "$origin" >"$work/origin"
tpu_env=$("$here/tpu_env.sh") || exit 1
PATH=$tpu_env/bin:$PATH
case $route in onnx) by_onnx ;; llm_convert) by_llm_convert ;; esac
rm -f "$bmodel.origin"
mv "$work/$name.bmodel" "$bmodel"
mv "$work/origin" "$bmodel.origin"
rm -rf "$work"
echo "$bmodel"
