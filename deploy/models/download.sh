#!/usr/bin/env bash
# Download a bmodel for the BM1684X that Sophgo publishes, as a model directory that a worker can serve:
#
#     deploy/models/download.sh NAME [--out models]
#     deploy/models/download.sh --list
#
#   --out   folder to put the folder NAME into (models)
#
# After an interruption, run it again: it keeps complete files. It needs a Python with sailq and dfss, Sophgo's
# downloader (PYTHON, default .venv/bin/python in the tree or python3), and a network from which dfss reaches Sophgo.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
name='' out=models list=
# Qwen2.5-VL's tokenizer_config.json has another chat template, for texts alone.
hub_files='chat_template.json config.json generation_config.json preprocessor_config.json tokenizer.json tokenizer_config.json'

stop() { echo "download.sh: $*" >&2; exit 1; }

find_python() {
    for python in ${PYTHON:-"$root/.venv/bin/python" python3}; do
        "$python" -c 'import sailq.worker' 2>/dev/null && return
    done
    stop "$python has no sailq, which checks the downloads: $python -m pip install $root"
}

# Lines of name|bmodel|configs|gigabytes|hub|about.
published() { "$python" -m sailq.worker.model_files.published; }

show_list() {
    local name bmodel configs gigabytes hub about
    while IFS='|' read -r name bmodel configs gigabytes hub about; do
        [ "$gigabytes" = 0 ] && gigabytes="size unknown" || gigabytes="$gigabytes GB"
        echo "$name: $about, $gigabytes"
        [ -n "$configs" ] || echo "    also needs these files of huggingface.co/$hub: $hub_files"
    done < <(published)
}

# whole FILE: succeeds if the file is complete; else prints the fault and fails.
whole() {
    "$python" - "$1" <<'PY'
import sys, zipfile
from pathlib import Path
from sailq.shared.errors import Unsupported
from sailq.worker.model_files.bmodel import read_bmodel
path = Path(sys.argv[1])
try:
    if path.suffix == ".bmodel":
        read_bmodel(path)
    elif zipfile.ZipFile(path).testzip():
        sys.exit(f"{path} is damaged.")
except (Unsupported, OSError, zipfile.BadZipFile) as error:
    sys.exit(str(error))
PY
}

free_bytes() { echo $(($(df -Pk "$1" | awk 'NR == 2 { print $4 }') * 1024)); }

# fetch PATH: downloads a file into the part folder. dfss writes to the current folder and tries three times. It may leave
# an incomplete file, which the next run deletes.
fetch() {
    local file=$part/${1##*/} free
    [ -e "$file" ] && whole "$file" 2>/dev/null && return
    rm -f "$file"
    echo "fetching ${1##*/}"
    if ! (cd "$part" && "$python" -m dfss --url="open@sophgo.com:$1" </dev/null >&2); then
        free=$(free_bytes "$part")
        [ "$free" -gt 100000000 ] || stop "the disk is full: $((free / 1000000)) MB are free in $out"
        stop "dfss could not fetch $1 (see above): is Sophgo's server reachable from here? Run again later"
    fi
    [ -e "$file" ] || stop "dfss exited with 0 but wrote no ${1##*/}; run this again"
    whole "$file" || stop "dfss downloaded an incomplete file; run this again to download it anew"
}

# The archive has config.json, token_config/ and processor_config/; a model directory is flat. If a file name occurs twice,
# the tokenizer's file is used.
unpack() {
    "$python" - "$1" "$2" <<'PY'
import sys, zipfile
from pathlib import Path, PurePosixPath
archive, folder = zipfile.ZipFile(sys.argv[1]), Path(sys.argv[2])
found = {}
for entry in sorted(archive.namelist(), key=lambda entry: ("processor" in entry, entry.count("/"))):
    path = PurePosixPath(entry)
    if path.suffix in {".json", ".txt", ".jinja"} and not path.name.startswith(".") and "__MACOSX" not in path.parts:
        found.setdefault(path.name, entry)
if "config.json" not in found:
    sys.exit(f"{sys.argv[1]} contains no config.json.")
for name, entry in found.items():
    (folder / name).write_bytes(archive.read(entry))
PY
}

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit ;;
        --list) list=yes ;;
        --out) [ $# -gt 1 ] || stop "--out needs a value"; out=$2; shift ;;
        -*) stop "unknown option $1; see --help" ;;
        *) [ -z "$name" ] || stop "give one model name; see --help"; name=$1 ;;
    esac
    shift
done

find_python
if [ -n "$list" ]; then
    show_list
    exit
fi
row=$(published | awk -F'|' -v name="$name" '$1 == name')
[ -n "$row" ] || stop "unknown model '$name'; known models: $(published | cut -d'|' -f1 | paste -sd' ')"
IFS='|' read -r _ bmodel configs gigabytes hub _ <<<"$row"

mkdir -p "$out" 2>/dev/null && [ -w "$out" ] || stop "cannot write to $out"
out=$(cd "$out" && pwd)
directory=$out/$name part=$out/$name.part file=${bmodel##*/}
if [ -e "$directory/$file" ]; then
    whole "$directory/$file" || stop "remove the file, and run this again"
    echo "$directory exists already"
    exit
fi

"$python" -c 'import dfss' 2>/dev/null || stop "$python has no dfss, Sophgo's downloader: $python -m pip install dfss"
mkdir -p "$part"
exec 9<"$part"
flock -n 9 || stop "another download.sh is fetching $name into $out"
if ! { [ -e "$part/$file" ] && whole "$part/$file" 2>/dev/null; }; then
    rm -f "$part/$file"
    free=$(free_bytes "$part")
    [ "$free" -gt $((gigabytes * 1000000000)) ] ||
        stop "$name needs $gigabytes GB, and $out has $((free / 1000000)) MB free"
fi

if [ -n "$configs" ]; then
    fetch "$configs"
    unpack "$part/${configs##*/}" "$part" || stop "the layout of Sophgo's archive has changed"
fi
fetch "$bmodel"
[ -z "$configs" ] || rm "$part/${configs##*/}"
if [ -d "$directory" ]; then  # it may have the hub's files: keep them, and move the bmodel last
    for made in "$part"/*; do
        [ "${made##*/}" = "$file" ] || [ -e "$directory/${made##*/}" ] || mv "$made" "$directory/"
    done
    mv "$part/$file" "$directory/"
    rm -rf "$part"
else
    mv "$part" "$directory"
fi

if [ -e "$directory/config.json" ]; then
    echo "$directory is ready: sailq worker --model $directory --device tpu:0"
else
    echo "$directory still needs the files of huggingface.co/$hub except the weights:"
    echo "hf download $hub $hub_files --local-dir $directory"
fi
