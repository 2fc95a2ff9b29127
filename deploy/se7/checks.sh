# Checks of a box before anything is installed. setup.sh sources this file. Each check prints ok, or the problem and its fix.
# A failed check does not stop the others.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # setup.sh sets some of these variables and reads others

LIBSOPHON=0.5.1
ENVIRONMENT_MB=2000  # estimate: sailq's environment with SAIL, and space to build it

bad() { echo "wrong $1"; printf '      fix: %s\n' "${@:2}"; wrong=$((wrong + 1)); }

check_libsophon() {
    local version
    # On a box, bm_version prints the version. On a host with cards, the target of a link contains it.
    version=$(bm_version 2>/dev/null | awk -F ' *: *' '$1 == "sophon-soc-libsophon" { print $2 }') || version=
    [ -n "$version" ] || version=$(readlink "$root/opt/sophon/libsophon-current" | sed 's#.*libsophon-##') || version=
    if [ -z "$version" ]; then
        bad "libsophon not found: neither bm_version nor /opt/sophon/libsophon-current shows a version" \
            "on a box, flash V24.04.01 (deploy/se7/README.md); with a card, install the driver (deploy/pcie/README.md)"
    elif [ "$(printf '%s\n' $LIBSOPHON "$version" | sort -V | head -n 1)" != $LIBSOPHON ]; then
        bad "libsophon is $version, and SAIL needs $LIBSOPHON or newer" "flash V24.04.01 (deploy/se7/README.md)"
    else
        ok "libsophon $version"
    fi
}

check_devices() {
    local node nodes=() missing=()
    chips=()
    if [ -e "$root/dev/bm-tpu0" ]; then
        soc=yes chips=(0) nodes=(bm-tpu0 bmdev-ctl ion)
    else
        soc=
        for node in "$root"/dev/bm-sophon[0-9]*; do
            [ -e "$node" ] || continue
            chips+=("${node##*/bm-sophon}") nodes+=("${node##*/}")
        done
        nodes+=(bmdev-ctl)
    fi
    [ ${#chips[@]} -gt 0 ] || {
        bad "no TPU found: neither /dev/bm-tpu0 nor /dev/bm-sophonN exists" \
            "sudo reboot; if that does not help, read the output of dmesg | grep -i sophon"
        return
    }
    for node in "${nodes[@]}"; do
        [[ $(stat -Lc %A "$root/dev/$node" 2>/dev/null) == *rw? ]] || missing+=("/dev/$node")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        bad "devices missing, or not readable and writable by all users: ${missing[*]}" "sudo chmod a+rw ${missing[*]}"
    else
        ok "TPU ${chips[*]}: ${nodes[*]/#//dev/}"
    fi
}

# Prints only a note: Sophgo's own services may also have the device open, and we do not know which do.
check_alone() {
    local ours pid chip
    ours=$(systemctl show --property MainPID --value 'sailq-worker@*' 2>/dev/null) || ours=
    for chip in ${chips[@]+"${chips[@]}"}; do
        for pid in $(find /proc/[0-9]*/fd \( -lname "$root/dev/bm-tpu$chip" -o -lname "$root/dev/bm-sophon$chip" \) \
            2>/dev/null | cut -d / -f 3 | sort -u); do
            grep -qx "$pid" <<<"$ours" ||
                note "TPU $chip is open in process $pid, $(ps -o args= -p "$pid" | cut -c 1-60): stop it if it runs a model"
        done
    done
}

# Estimates the memory that the model needs from its name. setup.sh checks again with the model's file.
check_heaps() {
    local need='' said
    [ -n "$soc" ] || return 0
    case ${model,,} in *7b*) need=9000 ;; *2b*) need=4000 ;; esac
    if [ -z "$need" ]; then
        note "heaps: checked later, with the model's file"
    elif said=$("$tree/deploy/se7/heaps.py" --root "${root:-/}" --need $need 2>&1); then
        ok "heaps hold about $need MB for $model"
    else
        bad "heaps too small for $model: $(grep -E 'missing|heaps.py:' <<<"$said" | head -n 1)" \
            "deploy/se7/heaps.py --need $need    # prints the sizes to set"
    fi
}

check_disk() {
    local at=$root$data free
    while [ ! -d "$at" ]; do at=$(dirname "$at"); done
    free=$(($(df -Pk "$at" | awk 'NR == 2 { print $4 }') / 1024))
    if [ -e "$environment/sailq-tree" ]; then
        ok "disk: $free MB free in $data"
    elif [ "$free" -lt $ENVIRONMENT_MB ]; then
        bad "$data has $free MB free, and sailq's environment takes up to $ENVIRONMENT_MB MB, without a model" \
            "free some space, or name another partition: --data DIR"
    else
        ok "disk: $free MB free in $data; the model's size is checked before its download"
    fi
}

# A wrong clock breaks TLS and package downloads. Deadlines of jobs do not depend on it: they use the server's clock.
check_clock() {
    local written
    written=$(stat -c %Y "${BASH_SOURCE[0]}")
    if [ "$(date +%s)" -lt "$written" ]; then
        bad "the clock says $(date -u +%F), which is before this script was written" \
            "sudo timedatectl set-ntp true, or sudo date -s 'YEAR-MONTH-DAY HOUR:MINUTE'"
    elif [ -z "$root" ] && [ "$(timedatectl show --property NTPSynchronized --value 2>/dev/null)" = no ]; then
        note "the clock says $(date -u '+%F %T') UTC, and it is not synchronized: sudo timedatectl set-ntp true"
    else
        ok "clock: $(date -u '+%F %T') UTC"
    fi
}

# Checks only whether the server accepts connections. `sailq doctor` tries the login once sailq is installed.
check_server() {
    local said
    if said=$(python3 - "$settings" 2>&1 <<'PY'
import os, socket, sys
from urllib.parse import parse_qs, urlsplit
lines = open(sys.argv[1]).read().splitlines()
url = urlsplit([line for line in lines if line.startswith("SAILQ_REDIS_URL=")][-1].partition("=")[2])
try:
    if url.scheme == "unix":
        where = url.path
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(where)
    else:
        where = f"{url.hostname}:{url.port or 6379}"
        socket.create_connection((url.hostname, url.port or 6379), 5).close()
except (OSError, ValueError) as error:
    sys.exit(f"no server answers at {where}: {error}")
authority = parse_qs(url.query).get("ssl_ca_certs", [""])[0]
beside = os.path.join(os.path.dirname(sys.argv[1]), "ca.crt")
if authority and not os.path.exists(authority) and not os.path.exists(beside):
    sys.exit(f"the URL names {authority}, which does not exist")
print(f"server: {where} answers")
PY
    ); then
        ok "$said"
    else
        bad "${said##*$'\n'}" "see deploy/redis/README.md; check the firewall, and the URL in $settings"
    fi
}
