#!/usr/bin/env bash
# Set up boxes, or update them to a new sailq or a new model, one after another over ssh:
#
#     deploy/se7/rollout.sh boxes.txt --env worker.env --model qwen2-vl-7b --sail WHEEL       # the first time
#     deploy/se7/rollout.sh boxes.txt                                                         # this tree's sailq
#     deploy/se7/rollout.sh boxes.txt --model http://mirror/models/qwen2-vl-7b-v2             # a new bmodel
#
#   boxes.txt       one ssh destination per line: root, or a user whose sudo asks for no password. # begins a comment
#   --wait SECONDS  maximum time until `sailq status` shows a box's workers. Default: 600
#   other options   are passed to setup.sh on the box; --env and --sail name files on this machine
#
# It copies this tree to /data/sailq-tree on the box and runs setup.sh there. It goes on to the next box when `sailq status`,
# run here with SAILQ_REDIS_URL (reader.env), shows the box's workers with this tree's version and the box's model. The
# other boxes keep answering. It stops at the first box that fails, and writes that box and the rest to boxes.txt.left. The
# failed box still has its old model: give --model the old name to go back.
#
# Exit code: 0, success; 1, a box failed; 2, usage error.
set -euo pipefail

tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
list='' wait_seconds=600 data=/data options=()
POLL=2

usage() { echo "rollout.sh: $*" >&2; exit 2; }
on_box() { ssh -o BatchMode=yes -o ConnectTimeout=10 -n "$box" "$@"; }

brought=$(mktemp -d)
trap 'rm -rf "$brought"' EXIT
mkdir "$brought/brought"

# bring OPTION FILE: copies the file to the box, and passes setup.sh the option with the file's path there.
bring() {
    [ -r "$2" ] || usage "$1: cannot read $2"
    cp "$2" "$brought/brought/"
    options+=("$1" "BROUGHT/$(basename "$2")")
}

read_options() {
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit ;;
            --env | --sail | --wait | --data | --model)
                [ $# -gt 1 ] || usage "$1 needs a value"
                case $1 in
                    --env)
                        bring "$1" "$2"
                        [ ! -f "$(dirname "$2")/ca.crt" ] || cp "$(dirname "$2")/ca.crt" "$brought/brought/" ;;
                    --sail) bring "$1" "$2" ;;
                    --wait) wait_seconds=$2 ;;
                    --data) data=${2%/} options+=("$1" "$2") ;;
                    --model) options+=("$1" "$2") ;;
                esac
                shift ;;
            -*) usage "unknown option $1; see --help" ;;
            *) [ -z "$list" ] || usage "give one list of boxes; see --help"; list=$1 ;;
        esac
        shift
    done
    [ -n "$list" ] || usage "the list of boxes is missing; see --help"
    [[ $wait_seconds =~ ^[0-9]+$ ]] || usage "--wait must be a whole number of seconds"
    mapfile -t boxes < <(sed 's/#.*//; s/[[:space:]]//g; /^$/d' "$list")
    [ ${#boxes[@]} -gt 0 ] || usage "$list lists no box"
    options=("${options[@]/#BROUGHT/$data/sailq-tree/brought}")
    sailq=$(command -v sailq || echo "$tree/.venv/bin/sailq")
    version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$tree/pyproject.toml")
}

copy_tree() {
    tar -c --exclude=__pycache__ --exclude=secrets -C "$tree" pyproject.toml README.md LICENSE shared producer worker operators \
        sailq deploy -C "$brought" brought |
        ssh -o BatchMode=yes -o ConnectTimeout=10 "$box" "sudo -n sh -c 'umask 077 && rm -rf $data/sailq-tree &&
            mkdir -p $data/sailq-tree && tar -x --no-same-owner -C $data/sailq-tree'"
}

set_up() {
    local code=0
    on_box "sudo -n $data/sailq-tree/deploy/se7/setup.sh $(printf '%q ' ${options[@]+"${options[@]}"})" || code=$?
    on_box "sudo -n rm -rf $data/sailq-tree/brought"  # it contains the server's password
    return $code
}

# seen HOST VERSION MODEL PID...: succeeds if `sailq status` shows each of these processes with this version and model.
seen() {
    "$sailq" status --json | python3 -c '
import json, sys
host, version, model, *pids = sys.argv[1:]
workers = json.load(sys.stdin)["workers"]
there = {(str(w["pid"]), w["version"], w["model"]) for w in workers if w["host"] == host}
if not pids or any((pid, version, model) not in there for pid in pids):
    found = ", ".join(map(" ".join, sorted(there))) or "none"
    sys.exit("its worker processes: " + (", ".join(pids) or "none") + "; sailq status shows: " + found)
' "$@"
}

await_workers() {
    local until=$((SECONDS + wait_seconds)) host model pids said
    host=$(on_box hostname) || return 1
    model=$(on_box "sudo -n sed -n 's/^SAILQ_MODEL=//p' /etc/sailq/worker.env") || return 1
    model=$(basename "$model")
    while :; do
        # Ask for the process ids each time: systemd restarts a worker that fails, as a new process.
        pids=$(on_box "systemctl show --property MainPID --value 'sailq-worker@*'" | grep -vx -e 0 -e '') || pids=
        # shellcheck disable=SC2086  # one argument per process
        if said=$(seen "$host" "$version" "$model" $pids 2>&1); then
            echo "$box serves $model with sailq $version"
            return
        fi
        if [ $SECONDS -ge $until ]; then
            echo "after $wait_seconds s sailq status does not show $model with sailq $version on $host: $said" >&2
            return 1
        fi
        sleep $POLL
    done
}

read_options "$@"
"$sailq" status --json >/dev/null || usage "sailq status failed on this machine: set SAILQ_REDIS_URL as in reader.env"
for number in "${!boxes[@]}"; do
    box=${boxes[number]}
    echo "[$((number + 1)) of ${#boxes[@]}] $box"
    # Within a condition, set -e has no effect: && stops at the first function that fails.
    { copy_tree && set_up && await_workers; } || {
        printf '%s\n' "${boxes[@]:number}" >"$list.left"
        echo "rollout.sh: stopped at $box; $list.left lists this box and those after it" >&2
        exit 1
    }
done
rm -f "$list.left"
