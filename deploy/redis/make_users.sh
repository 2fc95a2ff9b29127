#!/bin/sh
# The server's users: a password for each, users.acl for the server, and USER.env for whoever connects as USER.
#
#   deploy/redis/make_users.sh URL
#
# URL is the server's, without a user: redis://redis:6379/0, rediss://queue.local:6380/0?ssl_ca_certs=/etc/sailq/ca.crt.
# The folder SECRETS (deploy/redis/secrets) keeps the passwords over another run. USER.password holds one a line; the
# server takes each of them, and USER.env names the last. A password is of letters and digits, as in a URL.
set -eu
here=$(dirname "$0")
secrets=${SECRETS:-$here/secrets}
case ${1:-} in
    redis://*@* | rediss://*@*) echo "make_users.sh: the URL names no user: they are added here." >&2; exit 2 ;;
    redis://?* | rediss://?*) url=$1 ;;
    *) echo "usage: make_users.sh redis[s]://HOST:PORT/0" >&2; exit 2 ;;
esac
umask 077
mkdir -p "$secrets"

# The template without its comments, one line a user.
joined=$(sed -e '/^ *#/d' -e '/^ *$/d' "$here/users.acl.template" |
    awk '/^user / && NR > 1 { print "" } { sub(/^ +/, " "); printf "%s", $0 } END { print "" }')

printf '%s\n' "$joined" | while read -r line; do
    user=${line#user } && user=${user%% *}
    case $line in *PASSWORDS*) ;; *) printf '%s\n' "$line"; continue ;; esac
    [ -s "$secrets/$user.password" ] || openssl rand -hex 24 > "$secrets/$user.password"
    hashes=""
    # `printf` is the shell's own: no password is ever in the process list.
    while read -r password || [ -n "$password" ]; do
        case $password in
            "" | *[!A-Za-z0-9]*) echo "make_users.sh: $user.password holds a line of other characters." >&2; exit 2 ;;
        esac
        hash=$(printf %s "$password" | openssl dgst -sha256 -r)
        hashes="$hashes #${hash%% *}"
    done < "$secrets/$user.password"
    newest=$(tail -n 1 "$secrets/$user.password")
    echo "SAILQ_REDIS_URL=${url%%://*}://$user:$newest@${url#*://}" > "$secrets/$user.env"
    printf '%s\n' "${line%% PASSWORDS*}$hashes${line#*PASSWORDS}"
done > "$secrets/users.acl.new"
cat "$secrets/users.acl.new" > "$secrets/users.acl"  # a container has mounted this very file
rm "$secrets/users.acl.new"
# Hashes of passwords that nobody can guess: the server, which has a user of its own, may read them.
chmod 644 "$secrets/users.acl"
echo "in $secrets: users.acl for the server, and a .env for each of its users" >&2
