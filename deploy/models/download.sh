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
hub_files='config.json generation_config.json preprocessor_config.json tokenizer.json tokenizer_config.json'

stop() { echo "download.sh: $*" >&2; exit 1; }

find_python() {
    for python in ${PYTHON:-"$root/.venv/bin/python" python3}; do
        "$python" -c 'import sailq.worker' 2>/dev/null && return
    done
    stop "$python has no sailq, which checks what was fetched: $python -m pip install $root"
}

# Lines of name|bmodel|configs|gigabytes|hub|about.
published() { "$python" -m sailq.worker.model_files.published; }

show_list() {
    local name bmodel configs gigabytes hub about
    while IFS='|' read -r name bmodel configs gigabytes hub about; do
        [ "$gigabytes" = 0 ] && gigabytes="size unknown" || gigabytes="$gigabytes GB"
        echo "$name: $about, $gigabytes"
        [ -n "$configs" ] || echo "    to be added from huggingface.co/$hub: $hub_files"
    done < <(published)
}

# whole FILE: nothing if it is, else what is wrong with it.
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

# fetch PATH: into the part folder. dfss writes to where it runs, tries three times, and promises nothing of what it
# leaves behind: an unfinished file is not kept.
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
    [ -e "$file" ] || stop "dfss left no ${1##*/} although it says that it succeeded; run again"
    whole "$file" || stop "what dfss fetched is not whole; run again, it is fetched anew"
}

# The archive has config.json, token_config/ and processor_config/, and a model directory is flat. Where two hold a file
# of one name, the tokenizer's own is taken.
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
    sys.exit(f"{sys.argv[1]} holds no config.json.")
for name, entry in found.items():
    (folder / name).write_bytes(archive.read(entry))
PY
}

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit ;;
        --list) list=yes ;;
        --out) [ $# -gt 1 ] || stop "--out needs a value"; out=$2; shift ;;
        -*) stop "there is no option $1; see the head of this file" ;;
        *) [ -z "$name" ] || stop "one name at a time"; name=$1 ;;
    esac
    shift
done

find_python
if [ -n "$list" ]; then
    show_list
    exit
fi
row=$(published | awk -F'|' -v name="$name" '$1 == name')
[ -n "$row" ] || stop "there is no model '$name'; there is: $(published | cut -d'|' -f1 | paste -sd' ')"
IFS='|' read -r _ bmodel configs gigabytes hub _ <<<"$row"

mkdir -p "$out" 2>/dev/null && [ -w "$out" ] || stop "$out cannot be written to"
out=$(cd "$out" && pwd)
directory=$out/$name part=$out/$name.part file=${bmodel##*/}
if [ -e "$directory/$file" ]; then
    whole "$directory/$file" || stop "remove it, and run again"
    echo "$directory is there already"
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
        stop "$name takes $gigabytes GB, and $out has $((free / 1000000)) MB free"
fi

if [ -n "$configs" ]; then
    fetch "$configs"
    unpack "$part/${configs##*/}" "$part" || stop "Sophgo's archive is of another form than it was"
fi
fetch "$bmodel"
[ -z "$configs" ] || rm "$part/${configs##*/}"
if [ -d "$directory" ]; then  # with the hub's files, say, which stay; the bmodel comes last
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
    echo "$directory still needs the files of huggingface.co/$hub that are no weights:"
    echo "hf download $hub $hub_files --local-dir $directory"
fi
