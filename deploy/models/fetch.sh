#!/usr/bin/env bash
# Download a model directory from your own web server. Use it for hundreds of boxes, to spare Sophgo's server:
#
#     deploy/models/fetch.sh URL [--out models]
#
#   URL     a folder with the model's files and SHA256SUMS (made there by `sha256sum * > SHA256SUMS`). Its last part is the
#           model's name
#   --out   folder to put the model's folder into (models)
#
# An interrupted download continues where it stopped, also in another run, if the server supports ranges (nginx, Apache
# and Caddy do, Python's http.server does not). A file gets its name only after its SHA-256 has been checked. The script
# needs curl, but not sailq. For an https server with its own certificate authority, set curl's CURL_CA_BUNDLE.
set -euo pipefail

url='' out=models
TRIES=5      # maximum attempts in a row that bring no new byte
SPARE_MB=100

stop() { echo "fetch.sh: $*" >&2; exit 1; }
wrong() { echo "fetch.sh: $*" >&2; exit 2; }
size() { stat -c %s "$1" 2>/dev/null || echo 0; }
shown() { sed -E 's#://[^/@]*@#://***@#' <<<"$1"; }

# get URL FILE: downloads the part of the URL that FILE does not have yet.
get() {
    local tries=0 before code meter=--silent
    [ -t 2 ] && meter=--progress-bar
    while :; do
        before=$(size "$2") code=0
        curl --fail $meter --show-error --location --connect-timeout 10 --speed-limit 1 --speed-time 60 \
            --continue-at - --output "$2" "$1" || code=$?
        case $code in
            0) return ;;
            22) return 1 ;; # an HTTP error, which curl has printed; 416 if FILE has all bytes
            33) echo "the server does not support ranges: ${2##*/} is downloaded from the beginning" >&2; rm -f "$2"; before=0 ;;
        esac
        if [ "$(size "$2")" -gt "$before" ]; then tries=0; else tries=$((tries + 1)); fi
        [ "$tries" -lt $TRIES ] || return 1
        echo "${2##*/}: interrupted at $(size "$2") bytes; continuing" >&2
        sleep "$tries"
    done
}

# length URL: prints the file's size in bytes; prints nothing if the server does not send it.
length() {
    curl --fail --silent --location --head "$1" | tr -d '\r' |
        awk 'tolower($1) == "content-length:" { bytes = $2 } END { print bytes }'
}

# whole FILE SUM: succeeds if the file has this SHA-256.
whole() {
    [ -e "$1" ] && [ "$(sha256sum <"$1" | cut -d' ' -f1)" = "$2" ]
}

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit ;;
        --out) [ $# -gt 1 ] || wrong "--out needs a value"; out=$2; shift ;;
        http://?* | https://?*) [ -z "$url" ] || wrong "give one URL; see --help"; url=${1%/} ;;
        *) wrong "'$1' is neither an option nor an http:// or https:// URL; see --help" ;;
    esac
    shift
done
[ -n "$url" ] || wrong "the URL is missing; see --help"
name=${url##*/}
[[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || wrong "the last part of the URL, '$name', is not a valid model name"
command -v curl >/dev/null || stop "curl is not installed: sudo apt install curl"

mkdir -p "$out" 2>/dev/null && [ -w "$out" ] || stop "cannot write to $out"
directory=$out/$name part=$out/$name.part
mkdir -p "$part"
exec 9<"$part"
flock -n 9 || stop "another fetch.sh is downloading $name to $out"

rm -f "$part/SHA256SUMS"
get "$url/SHA256SUMS" "$part/SHA256SUMS" ||
    stop "cannot download $(shown "$url")/SHA256SUMS; to make it, run in that folder of the server: sha256sum * > SHA256SUMS"
sums=()
while read -r sum file; do
    file=${file#\*}
    [ "$file" = SHA256SUMS ] && continue
    [[ $sum =~ ^[0-9a-f]{64}$ && $file =~ ^[A-Za-z0-9_][A-Za-z0-9._-]*$ ]] ||
        stop "SHA256SUMS has an invalid line, or a file name with a folder: '$sum $file'"
    sums+=("$sum $file")
done <"$part/SHA256SUMS"
[[ " ${sums[*]} " == *" config.json "* ]] || stop "SHA256SUMS lists no config.json: is this a model directory?"
if cmp -s "$part/SHA256SUMS" "$directory/SHA256SUMS"; then
    rm -r "$part"
    echo "$directory exists already"
    exit
fi

left=()
need=0
for entry in "${sums[@]}"; do
    file=${entry#* }
    whole "$part/$file" "${entry%% *}" && continue
    left+=("$entry")
    bytes=$(length "$url/$file") || bytes=
    if [ "$(size "$part/$file")" -ge "${bytes:-1}" ]; then rm -f "$part/$file"; fi # it has all bytes, but a wrong checksum
    need=$((need + ${bytes:-0} - $(size "$part/$file")))
done
free=$(($(df -Pk "$part" | awk 'NR == 2 { print $4 }') / 1024))
[ $((need / 1000000 + SPARE_MB)) -le "$free" ] ||
    stop "$name needs $((need / 1000000)) MB more, and $out has $free MB free"

for entry in ${left[@]+"${left[@]}"}; do
    file=${entry#* }
    echo "fetching $file"
    get "$url/$file" "$part/$file" ||
        stop "$(shown "$url")/$file cannot be downloaded; run this again later: it continues at $(size "$part/$file") bytes"
    whole "$part/$file" "${entry%% *}" || {
        rm -f "$part/$file"
        stop "$file does not match SHA256SUMS: did the server's folder change? Run this again to download the file anew"
    }
done
if [ -e "$directory" ]; then # a running worker keeps its open files
    rm -rf "$directory.old"
    mv "$directory" "$directory.old"
fi
mv "$part" "$directory"
rm -rf "$directory.old"
echo "$directory is ready: sailq worker --model $directory --device tpu:0"
