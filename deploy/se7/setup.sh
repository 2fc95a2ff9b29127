#!/usr/bin/env bash
# Set up a flashed box (SE7), or a machine with BM1684X cards, with a worker for each chip that survives reboots:
#
#     sudo deploy/se7/setup.sh --env worker.env --model qwen2-vl-7b [--sail WHEEL]
#     sudo deploy/se7/setup.sh                    # continue where it stopped, or install a new sailq
#     sudo deploy/se7/setup.sh --model http://mirror/models/qwen2-vl-7b-v2
#     deploy/se7/setup.sh --check --env worker.env --model qwen2-vl-7b
#
#   --env FILE    the worker's settings, one NAME=value per line, including SAILQ_REDIS_URL: the worker.env that
#                 deploy/redis/make_users.sh makes. A ca.crt in its folder is copied, too. Default: the one in /etc/sailq
#   --model M     a published model's name (deploy/models/download.sh --list); a folder on your web server
#                 (deploy/models/fetch.sh); or a directory on this machine. Default: the one in /etc/sailq
#   --sail WHEEL  SAIL for Python 3.11 and this machine. Default: the one that Sophgo's dfss installs
#   --data DIR    folder on a large partition, for the environment and the models. Default: /data
#   --check       only run the checks. Needs no root and changes nothing
#   --root DIR    put all files below DIR and start nothing (for tests)
#
# Each step checks first, prints what it finds or does, and skips what is already done: if the script stops, run it again.
# It makes DIR/sailq-env, DIR/models, the user sailq and /etc/sailq/worker.env (mode 600), and enables and starts
# sailq-worker@N.service. It restarts the workers, after their running jobs, only if something has changed.
#
# Exit code: 0, success; 1, a check or step failed (its fix is printed); 2, usage error.
set -euo pipefail
umask 022
PATH=$PATH:/usr/sbin:/sbin

tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PACKAGE=(pyproject.toml README.md LICENSE shared producer worker operators sailq)  # what sailq is installed from
settings='' model='' sail='' data=/data check='' root='' wrong=0

usage() { echo "setup.sh: $*" >&2; exit 2; }
stop() { echo "stop: $1" >&2; [ $# -lt 2 ] || printf '      %s\n' "${@:2}" >&2; exit 1; }
ok() { echo "ok    $*"; }
does() { echo "does  $*"; }
note() { echo "note  $*"; }
# shellcheck source=deploy/se7/checks.sh
. "$tree/deploy/se7/checks.sh"

read_options() {
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit ;;
            --check) check=yes ;;
            --env | --model | --sail | --data | --root)
                [ $# -gt 1 ] || usage "$1 needs a value"
                case $1 in
                    --env) settings=$2 ;;
                    --model) model=$2 ;;
                    --sail) sail=$2 ;;
                    --data) data=${2%/} ;;
                    --root) root=${2%/} ;;
                esac
                shift ;;
            *) usage "there is no option $1; see --help" ;;
        esac
        shift
    done
    [[ $data == /?* && $data != *[[:space:]]* ]] || usage "--data is an absolute path without spaces"
    [ -n "$check$root" ] || [ "$(id -u)" = 0 ] || usage "run it as root: sudo $0"
    [ -n "$settings" ] || settings=$root/etc/sailq/worker.env
    [ -r "$settings" ] || usage "--env FILE names the worker's settings: $settings cannot be read"
    grep -q '^SAILQ_REDIS_URL=.' "$settings" || usage "$settings has no line SAILQ_REDIS_URL=…"
    [ -n "$model" ] || model=$(sed -n 's/^SAILQ_MODEL=//p' "$settings" | tail -n 1)
    [ -n "$model" ] || usage "--model says what this box serves"
    [ -z "$sail" ] || [ -f "$sail" ] || usage "--sail: there is no file $sail"
    environment=$root$data/sailq-env
    python=$environment/bin/python
    export LD_LIBRARY_PATH=$root/opt/sophon/libsophon-current/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}

# changes WHAT: a worker that runs must be restarted, by the next run if this one is stopped before it comes to that.
changes() { does "$*"; touch "$root$data/sailq-changed"; }

# put FILE MODE: standard input becomes the file, if it is another than it was.
put() {
    local new=$1.new
    (umask 077 && cat >"$new")
    chmod "$2" "$new"
    if cmp -s "$new" "$1" && [ "$(stat -c %a "$1")" = "$2" ]; then
        rm "$new"
        ok "$1"
    else
        mv "$new" "$1"
        changes "$1, mode $2"
    fi
}

make_user() {
    if grep -q '^sailq:' "$root/etc/passwd" 2>/dev/null; then
        ok "user sailq"
    else
        does "user sailq, of the system's own, without a login"
        echo 'u sailq - "sailq worker"' | systemd-sysusers ${root:+--root="$root"} -
    fi
}

make_environment() {
    local uv
    if "$python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        ok "$("$python" --version) in $data/sailq-env"
        return
    fi
    uv=$(command -v uv) || uv=$root$data/sailq-uv/bin/uv
    [ -x "$uv" ] || {
        does "uv, which brings a Python 3.11"
        python3 -m pip install --quiet --upgrade --target "$root$data/sailq-uv" uv ||
            stop "uv cannot be installed" "is PyPI to be reached from here? sudo apt install python3-pip"
    }
    changes "a Python 3.11 in $data/sailq-env"
    rm -rf "$environment"
    # Not in root's home, where the user sailq may not look.
    UV_PYTHON_INSTALL_DIR=$root$data/sailq-python "$uv" venv --quiet --seed --python 3.11 "$environment" ||
        stop "uv made no environment (see above)" \
            "it fetches a Python from GitHub, where there is none: sudo apt install python3.11-venv, or" \
            "UV_PYTHON_INSTALL_MIRROR, uv's own, or the container of deploy/se7/README.md"
}

tree_sum() {
    (cd "$tree" && find "${PACKAGE[@]}" -type f -not -path '*__pycache__*' -print0 |
        sort -z | xargs -0 sha256sum | sha256sum)
}

install_sailq() {
    local sum copy
    sum=$(tree_sum)
    if [ "$(cat "$environment/sailq-tree" 2>/dev/null)" = "$sum" ]; then
        ok "sailq $(version)"
        return
    fi
    changes "sailq from $tree"
    copy=$(mktemp -d)  # setuptools leaves its build folder beside what it builds, and reads it again
    (cd "$tree" && cp -r "${PACKAGE[@]}" "$copy")
    "$python" -m pip install --quiet "${copy}[tpu]" || {
        rm -rf "$copy"
        stop "pip did not install sailq (see above)" "is PyPI to be reached from here? Run again"
    }
    rm -rf "$copy"
    echo "$sum" >"$environment/sailq-tree"
    ok "sailq $(version)"
}

version() { "$python" -c 'from importlib.metadata import version; print(version("sailq"))'; }

has_sail() { "$python" -c 'from sophon import sail; sail.EngineLLM' 2>/dev/null; }

install_sail() {
    local sum=
    [ -z "$sail" ] || sum=$(sha256sum <"$sail")
    if [ "$sum" = "$(cat "$environment/sail-wheel" 2>/dev/null)" ] || [ -z "$sum" ] && has_sail; then
        ok "SAIL"
        return
    fi
    changes "SAIL ${sail:+from $sail}"
    if [ -n "$sail" ]; then
        "$python" -m pip install --quiet --force-reinstall --no-deps "$sail" ||
            stop "pip did not install $sail (see above)"
    else
        { "$python" -m pip install --quiet dfss && "$python" -m dfss --install sail >&2; } ||
            stop "dfss installed no SAIL" "build a wheel (deploy/se7/README.md, SAIL) and give it: --sail WHEEL"
    fi
    has_sail || stop "SAIL does not work: $("$python" -c 'from sophon import sail; sail.EngineLLM' 2>&1 | tail -n 1)" \
        "deploy/se7/README.md, When something fails; a wheel of your own: --sail WHEEL"
    echo "$sum" >"$environment/sail-wheel"
}

get_model() {
    local found bmodel models=$root$data/models
    mkdir -p "$models"
    case $model in
        http://* | https://*)
            directory=$data/models/$(basename "$model")
            "$tree/deploy/models/fetch.sh" "$model" --out "$models" || stop "the model is not there (see above)" ;;
        */*) directory=${model%/} ;;
        *)
            directory=$data/models/$model
            "$python" -c 'import dfss' 2>/dev/null || "$python" -m pip install --quiet dfss ||
                stop "pip did not install dfss, Sophgo's downloader (see above)"
            PYTHON=$python "$tree/deploy/models/download.sh" "$model" --out "$models" ||
                stop "the model is not there (see above)" ;;
    esac
    [ -f "$root$directory/config.json" ] || stop "$directory has no config.json" \
        "the checkpoint's config, tokenizer and processor files belong beside the bmodel"
    found=$("$environment/bin/sailq" model inspect "$root$directory" 2>&1) || stop "$(tail -n 1 <<<"$found")"
    bmodel=$(compgen -G "$root$directory/*.bmodel" | head -n 1) || stop "$directory has no *.bmodel"
    if [ -n "$soc" ]; then
        PATH=$environment/bin:$PATH "$tree/deploy/se7/heaps.py" --root "${root:-/}" "$bmodel" ||
            stop "$directory does not fit into the heaps: set them as said above, and run this again"
    fi
    # One of the same name may hold other files than before.
    found=$(cd "$root$directory" && stat -Lc '%n %s %y' -- *)
    if [ "$found" = "$(cat "$environment/model-files" 2>/dev/null)" ]; then
        ok "model $directory"
    else
        changes "model $directory"
        echo "$found" >"$environment/model-files"
    fi
}

write_settings() {
    local beside
    mkdir -p "$root/etc/sailq"
    beside=$(dirname "$settings")/ca.crt
    [ ! -f "$beside" ] || [ "$beside" -ef "$root/etc/sailq/ca.crt" ] || put "$root/etc/sailq/ca.crt" 644 <"$beside"
    put "$root/etc/sailq/worker.env" 600 < <(grep -v '^SAILQ_MODEL=' "$settings"; echo "SAILQ_MODEL=$directory")
}

write_unit() {
    mkdir -p "$root/etc/systemd/system"
    put "$root/etc/systemd/system/sailq-worker@.service" 644 \
        < <(sed "s#/data/#$data/#g" "$tree/deploy/se7/sailq-worker@.service")
    systemctl ${root:+--root="$root"} --quiet enable "${units[@]}"
    ok "${units[*]}: enabled"
}

# As each worker will be: its settings, its user, its chip, which the doctor does not open: an old worker goes on.
run_doctor() {
    local chip line
    "$environment/bin/sailq" doctor --help >/dev/null 2>&1 || return 0
    for chip in "${chips[@]}"; do
        (
            while IFS= read -r line; do
                [[ $line != SAILQ_*=* ]] || export "${line?}"
            done < <(cat "$root/etc/sailq/worker.env" "$root/etc/sailq/worker-$chip.env" 2>/dev/null)
            setpriv --reuid=sailq --regid=sailq --clear-groups "$environment/bin/sailq" doctor --device "tpu:$chip"
        ) || stop "sailq doctor has found what would stop the worker (see above)" "fix it, and run this again"
    done
}

start_workers() {
    local how=start
    systemctl daemon-reload
    if [ -e "$root$data/sailq-changed" ]; then
        run_doctor
        how=restart
        does "${units[*]}: started anew, after the jobs that run; a 7B loads in one to three minutes"
    fi
    systemctl $how "${units[@]}" ||
        stop "a worker does not take jobs, and is started again every 10 s" "journalctl -n 30 -u ${units[0]}"
    rm -f "$root$data/sailq-changed"
    ok "${units[*]}: takes jobs"
}

main() {
    read_options "$@"
    echo "Checks"
    check_libsophon
    check_devices
    check_alone
    check_heaps
    check_disk
    check_clock
    check_server
    [ $wrong = 0 ] || stop "$wrong of the checks failed; nothing was changed"
    [ -z "$check" ] || exit 0

    units=("${chips[@]/#/sailq-worker@}")
    mkdir -p "$root$data" "$root/etc"
    exec 9<"$root$data"
    flock -n 9 || stop "another setup.sh is running here"
    echo "Environment"
    make_user
    make_environment
    install_sailq
    install_sail
    echo "Model"
    get_model
    echo "Service"
    write_settings
    write_unit
    if [ -z "$root" ]; then start_workers; else note "nothing is started: --root"; fi
}

[ "${BASH_SOURCE[0]}" != "$0" ] || main "$@"  # a test reads the functions alone
