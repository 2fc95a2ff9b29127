#!/bin/sh
# Start the server or sentinel of a container of docker-compose.sentinel.yml, in its data folder:
#
#   start.sh server [PRIMARY PORT]      start.sh sentinel
#
# Sentinels change their own configuration file and those of the servers. Each container therefore has its own copy beside
# its data, made at its first start.
set -eu
new() {
    [ -s "$1" ] || { cat > "$1.new" && mv "$1.new" "$1"; }
}
case ${1:-} in
    server)
        {
            printf 'include /etc/sailq/%s.conf\n' sailq tls replication
            echo "replica-announce-ip $(hostname)"
            [ $# -eq 1 ] || echo "replicaof $2 $3"
        } | new server.conf
        exec valkey-server ./server.conf --maxmemory "$SERVER_MEMORY" ;;
    sentinel)
        { cat /etc/sailq/sentinel.conf && echo "sentinel announce-ip $(hostname)"; } | new sentinel.conf
        exec valkey-sentinel ./sentinel.conf ;;
    *) echo "usage: start.sh server [PRIMARY PORT] | start.sh sentinel" >&2; exit 2 ;;
esac
