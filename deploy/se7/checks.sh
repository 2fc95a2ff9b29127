# What must hold on a box before anything is installed: setup.sh reads this file, whose variables and words it uses.
# Each check says one line, ok or what is wrong with its fix, and none stops the others.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # setup.sh sets some of these variables and reads others

LIBSOPHON=0.5.1
ENVIRONMENT_MB=2000  # sailq's environment with SAIL, and room to build it: our estimate

bad() { echo "wrong $1"; printf '      fix: %s\n' "${@:2}"; wrong=$((wrong + 1)); }

check_libsophon() {
    local version
    # A box says so; a card's host has it in a link's name.
    version=$(bm_version 2>/dev/null | awk -F ' *: *' '$1 == "sophon-soc-libsophon" { print $2 }') || version=
    [ -n "$version" ] || version=$(readlink "$root/opt/sophon/libsophon-current" | sed 's#.*libsophon-##') || version=
    if [ -z "$version" ]; then
        bad "there is no libsophon: neither bm_version nor /opt/sophon/libsophon-current names one" \
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
        bad "there is no TPU: neither /dev/bm-tpu0 nor /dev/bm-sophonN" \
            "sudo reboot; if that brings none, dmesg | grep -i sophon says why"
        return
    }
    for node in "${nodes[@]}"; do
        [[ $(stat -Lc %A "$root/dev/$node" 2>/dev/null) == *rw? ]] || missing+=("/dev/$node")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        bad "missing, or not for everyone to read and write: ${missing[*]}" "sudo chmod a+rw ${missing[*]}"
    else
        ok "TPU ${chips[*]}: ${nodes[*]/#//dev/}"
    fi
}

# A note alone: which of Sophgo's own services hold the device open is not known to us.
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

# What a model takes is known from its file once it is there; until then by what its name says.
check_heaps() {
    local need='' said
    [ -n "$soc" ] || return 0
    case ${model,,} in *7b*) need=9000 ;; *2b*) need=4000 ;; esac
    if [ -z "$need" ]; then
        note "heaps: asked again when the model is there"
    elif said=$("$tree/deploy/se7/heaps.py" --root "${root:-/}" --need $need 2>&1); then
        ok "heaps hold about $need MB for $model"
    else
        bad "heaps too small for $model: $(grep -E 'missing|heaps.py:' <<<"$said" | head -n 1)" \
            "deploy/se7/heaps.py --need $need    # says what to set"
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
            "make room, or name another partition: --data DIR"
    else
        ok "disk: $free MB free in $data; the model's own size is checked before it is fetched"
    fi
}

# A wrong clock breaks TLS and every package source. Deadlines go by the server's clock.
check_clock() {
    local written
    written=$(stat -c %Y "${BASH_SOURCE[0]}")
    if [ "$(date +%s)" -lt "$written" ]; then
        bad "the clock says $(date -u +%F), which is before this script was written" \
            "sudo timedatectl set-ntp true, or sudo date -s 'YEAR-MONTH-DAY HOUR:MINUTE'"
    elif [ -z "$root" ] && [ "$(timedatectl show --property NTPSynchronized --value 2>/dev/null)" = no ]; then
        note "the clock says $(date -u '+%F %T') UTC, and nothing keeps it right: sudo timedatectl set-ntp true"
    else
        ok "clock: $(date -u '+%F %T') UTC"
    fi
}

# Without sailq only whether anything listens; the login is tried when sailq is there.
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
    sys.exit(f"the URL names {authority}, and there is no such file")
print(f"server: {where} answers")
PY
    ); then
        ok "$said"
    else
        bad "${said##*$'\n'}" "deploy/redis/README.md; from here: ping, a firewall's rules, the URL in $settings"
    fi
}
