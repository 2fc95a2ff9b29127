#!/bin/sh
# Make a password for each user of the server, users.acl for the server, and USER.env for clients that connect as USER.
#
#   deploy/redis/make_users.sh URL [PRIMARY:PORT]
#
# URL is the server's URL without a user: redis://redis:6379/0, rediss://queue.local:6380/0?ssl_ca_certs=/etc/sailq/ca.crt.
# With sentinels it is rediss+sentinel://one:26379,two:26379,three:26379/sailq/0?ssl_ca_certs=/etc/sailq/ca.crt, and
# PRIMARY:PORT is the server that starts as the primary. The script then also makes sentinel.conf for each sentinel, and
# replication.conf for each server.
# The folder SECRETS (deploy/redis/secrets) keeps the passwords between runs. USER.password has one password per line. The
# server accepts all of them, and USER.env has the last one. A password consists of letters and digits, so that it fits a URL.
set -eu
usage() {
    echo "usage: make_users.sh redis[s]://HOST:PORT/0" >&2
    echo "       make_users.sh redis[s]+sentinel://HOST:PORT,HOST:PORT,HOST:PORT/NAME/0 PRIMARY:PORT" >&2
    exit 2
}
here=$(dirname "$0")
secrets=${SECRETS:-$here/secrets} primary=""
case ${1:-} in
    redis://*@* | rediss://*@* | redis+sentinel://*@* | rediss+sentinel://*@*)
        echo "make_users.sh: give the URL without a user: this script adds the users." >&2; exit 2 ;;
    redis://?* | rediss://?*) url=$1 ;;
    redis+sentinel://?*/?*/* | rediss+sentinel://?*/?*/*) url=$1 primary=${2:-}
        case $primary in ?*:?*) ;; *) usage ;; esac ;;
    *) usage ;;
esac
umask 077
mkdir -p "$secrets"

if [ -n "$primary" ]; then  # the sentinels' own password is an option of each client's URL
    [ -s "$secrets/sentinels.password" ] || openssl rand -hex 24 > "$secrets/sentinels.password"
    sentinels=$(tail -n 1 "$secrets/sentinels.password")
    case $url in *\?*) url="$url&sentinel_password=$sentinels" ;; *) url="$url?sentinel_password=$sentinels" ;; esac
fi

# The template without its comments, one line per user.
joined=$(sed -e '/^ *#/d' -e '/^ *$/d' "$here/users.acl.template" |
    awk '/^user / && NR > 1 { print "" } { sub(/^ +/, " "); printf "%s", $0 } END { print "" }')

printf '%s\n' "$joined" | while read -r line; do
    user=${line#user } && user=${user%% *}
    case $line in *PASSWORDS*) ;; *) printf '%s\n' "$line"; continue ;; esac
    [ -s "$secrets/$user.password" ] || openssl rand -hex 24 > "$secrets/$user.password"
    hashes=""
    # `printf` is a builtin of the shell, so no password appears in the process list.
    while read -r password || [ -n "$password" ]; do
        case $password in
            "" | *[!A-Za-z0-9]*) echo "make_users.sh: $user.password has a line with characters other than letters and digits." >&2; exit 2 ;;
        esac
        hash=$(printf %s "$password" | openssl dgst -sha256 -r)
        hashes="$hashes #${hash%% *}"
    done < "$secrets/$user.password"
    newest=$(tail -n 1 "$secrets/$user.password")
    case $user in sentinel | replica) ;; *)
        echo "SAILQ_REDIS_URL=${url%%://*}://$user:$newest@${url#*://}" > "$secrets/$user.env" ;;
    esac
    printf '%s\n' "${line%% PASSWORDS*}$hashes${line#*PASSWORDS}"
done > "$secrets/users.acl.new"
cat "$secrets/users.acl.new" > "$secrets/users.acl"  # overwrites the file in place: a container may have mounted it
rm "$secrets/users.acl.new"
if [ -n "$primary" ]; then
    rm -f "$secrets/replication.conf" "$secrets/sentinel.conf"  # they may belong to the server's user
    name=${url#*://*/} && name=${name%%/*}
    printf 'masteruser replica\nmasterauth %s\n' "$(tail -n 1 "$secrets/replica.password")" > "$secrets/replication.conf"
    {
        # Each sentinel needs its own copy, because it writes its state to this file.
        case $url in
            rediss*) printf 'port 0\ntls-port 26379\n'; sed -e '/^#/d' -e '/^ *$/d' -e '/^\(tls-\)*port /d' "$here/tls.conf" ;;
            *) echo "port 26379" ;;
        esac
        cat <<END
requirepass $sentinels
sentinel sentinel-pass $sentinels
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel monitor $name ${primary%:*} ${primary##*:} 2
sentinel auth-user $name sentinel
sentinel auth-pass $name $(tail -n 1 "$secrets/sentinel.password")
sentinel down-after-milliseconds $name 5000
sentinel failover-timeout $name 30000
sentinel parallel-syncs $name 1
END
    } > "$secrets/sentinel.conf"
fi
# The server runs as another user and must read this file. It contains only hashes of long random passwords.
chmod 644 "$secrets/users.acl"
echo "in $secrets: users.acl for the server, and a .env for each of its users" >&2
[ -z "$primary" ] || echo "replication.conf for each server too, and sentinel.conf for each sentinel" >&2
