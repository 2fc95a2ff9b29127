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
PACKAGE=(pyproject.toml README.md LICENSE shared producer worker operators sailq)  # the files from which sailq is installed
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
            *) usage "unknown option $1; see --help" ;;
        esac
        shift
    done
    [[ $data == /?* && $data != *[[:space:]]* ]] || usage "--data must be an absolute path without spaces"
    [ -n "$check$root" ] || [ "$(id -u)" = 0 ] || usage "this script must run as root: sudo $0"
    [ -n "$settings" ] || settings=$root/etc/sailq/worker.env
    [ -r "$settings" ] || usage "cannot read the worker's settings from $settings; name another file with --env"
    grep -q '^SAILQ_REDIS_URL=.' "$settings" || usage "$settings has no line SAILQ_REDIS_URL=…"
    [ -n "$model" ] || model=$(sed -n 's/^SAILQ_MODEL=//p' "$settings" | tail -n 1)
    [ -n "$model" ] || usage "--model is missing: the model that this box serves"
    [ -z "$sail" ] || [ -f "$sail" ] || usage "--sail: $sail does not exist"
    environment=$root$data/sailq-env
    python=$environment/bin/python
    export LD_LIBRARY_PATH=$root/opt/sophon/libsophon-current/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}

# changes WHAT: prints a change after which running workers must be restarted. If this run stops first, the next run
# restarts them.
changes() { does "$*"; touch "$root$data/sailq-changed"; }

# put FILE MODE: writes standard input to the file, if its content or mode would change.
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
        does "system user sailq, without a login"
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
        does "uv, which installs Python 3.11"
        python3 -m pip install --quiet --upgrade --target "$root$data/sailq-uv" uv ||
            stop "pip could not install uv (see above)" "check that PyPI is reachable; sudo apt install python3-pip"
    }
    changes "a Python 3.11 in $data/sailq-env"
    rm -rf "$environment"
    # Not in root's home, which the user sailq cannot read.
    UV_PYTHON_INSTALL_DIR=$root$data/sailq-python "$uv" venv --quiet --seed --python 3.11 "$environment" ||
        stop "uv could not make an environment (see above)" \
            "without a Python 3.11 on this machine, uv downloads one from GitHub: install python3.11-venv," \
            "set UV_PYTHON_INSTALL_MIRROR, or use the container of deploy/se7/README.md"
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
    copy=$(mktemp -d)  # setuptools leaves a build folder beside the sources, which a later build would read
    (cd "$tree" && cp -r "${PACKAGE[@]}" "$copy")
    "$python" -m pip install --quiet "${copy}[tpu]" || {
        rm -rf "$copy"
        stop "pip could not install sailq (see above)" "check that PyPI is reachable, and run this again"
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
            stop "pip could not install $sail (see above)"
    else
        { "$python" -m pip install --quiet dfss && "$python" -m dfss --install sail >&2; } ||
            stop "dfss did not install SAIL" "build a wheel (deploy/se7/README.md, SAIL) and pass it: --sail WHEEL"
    fi
    has_sail || stop "SAIL does not work: $("$python" -c 'from sophon import sail; sail.EngineLLM' 2>&1 | tail -n 1)" \
        "see deploy/se7/README.md, When something fails; to install another wheel: --sail WHEEL"
    echo "$sum" >"$environment/sail-wheel"
}

get_model() {
    local found bmodel models=$root$data/models
    mkdir -p "$models"
    case $model in
        http://* | https://*)
            directory=$data/models/$(basename "$model")
            "$tree/deploy/models/fetch.sh" "$model" --out "$models" || stop "cannot download the model (see above)" ;;
        */*) directory=${model%/} ;;
        *)
            directory=$data/models/$model
            "$python" -c 'import dfss' 2>/dev/null || "$python" -m pip install --quiet dfss ||
                stop "pip could not install dfss, Sophgo's downloader (see above)"
            PYTHON=$python "$tree/deploy/models/download.sh" "$model" --out "$models" ||
                stop "cannot download the model (see above)" ;;
    esac
    [ -f "$root$directory/config.json" ] || stop "$directory has no config.json" \
        "copy the checkpoint's config, tokenizer and processor files into it"
    found=$("$environment/bin/sailq" model inspect "$root$directory" 2>&1) || stop "$(tail -n 1 <<<"$found")"
    bmodel=$(compgen -G "$root$directory/*.bmodel" | head -n 1) || stop "$directory has no *.bmodel"
    if [ -n "$soc" ]; then
        PATH=$environment/bin:$PATH "$tree/deploy/se7/heaps.py" --root "${root:-/}" "$bmodel" ||
            stop "$directory does not fit into the heaps: set them as shown above, and run this again"
    fi
    # A directory of the same name may have other files than before.
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

# Runs `sailq doctor` with the settings, the user and the chip of each worker. It does not open the chip, so it does not
# disturb a worker that runs.
run_doctor() {
    local chip line
    "$environment/bin/sailq" doctor --help >/dev/null 2>&1 || return 0
    for chip in "${chips[@]}"; do
        (
            while IFS= read -r line; do
                [[ $line != SAILQ_*=* ]] || export "${line?}"
            done < <(cat "$root/etc/sailq/worker.env" "$root/etc/sailq/worker-$chip.env" 2>/dev/null)
            setpriv --reuid=sailq --regid=sailq --clear-groups "$environment/bin/sailq" doctor --device "tpu:$chip"
        ) || stop "sailq doctor found a problem that would stop the worker (see above)" "fix it, and run this again"
    done
}

start_workers() {
    local how=start
    systemctl daemon-reload
    if [ -e "$root$data/sailq-changed" ]; then
        run_doctor
        how=restart
        does "${units[*]}: restart after the running jobs; a 7B model loads in one to three minutes"
    fi
    systemctl $how "${units[@]}" ||
        stop "a worker failed to start; systemd restarts it every 10 s" "journalctl -n 30 -u ${units[0]}"
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
    if [ -z "$root" ]; then start_workers; else note "nothing is started, because of --root"; fi
}

[ "${BASH_SOURCE[0]}" != "$0" ] || main "$@"  # tests source this file for its functions
