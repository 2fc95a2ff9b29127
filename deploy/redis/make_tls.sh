#!/bin/sh
# Make a certificate for the server, and your own certificate authority that signs it.
#
#   deploy/redis/make_tls.sh NAME...
#
# The NAMEs are all host names and addresses that clients use for the server: queue.local 10.0.0.5. The folder SECRETS
# (deploy/redis/secrets) keeps the authority between runs, so clients need no new ca.crt when the certificate is renewed.
set -eu
secrets=${SECRETS:-$(dirname "$0")/secrets}
names=""
for name in "$@"; do
    case $name in
        "" | *[!A-Za-z0-9.:*-]*) echo "make_tls.sh: '$name' is not a host name or address." >&2; exit 2 ;;
        *:*) kind=IP ;;
        *[!0-9.]*) kind=DNS ;;
        *) kind=IP ;;
    esac
    names="$names${names:+,}$kind:$name"
done
[ -n "$names" ] || { echo "usage: make_tls.sh NAME..." >&2; exit 2; }
umask 077
mkdir -p "$secrets" && cd "$secrets"
key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"

if [ ! -s ca.key ]; then
    openssl req -x509 $key -keyout ca.key -out ca.crt -days 3650 -subj "/CN=sailq authority" \
        -addext keyUsage=critical,keyCertSign,cRLSign 2> openssl.log || { cat openssl.log >&2; exit 1; }
fi
cat > server.ext <<END
subjectAltName = $names
extendedKeyUsage = serverAuth
keyUsage = critical,digitalSignature
basicConstraints = critical,CA:FALSE
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END
{
    openssl req $key -keyout server.key -out server.csr -subj "/CN=sailq server"
    openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -set_serial "0x$(openssl rand -hex 15)" \
        -days 825 -extfile server.ext -out server.crt
} 2> openssl.log || { cat openssl.log >&2; exit 1; }
rm server.ext server.csr openssl.log
chmod 644 ca.crt server.crt
echo "in $PWD: server.crt and server.key for the server, ca.crt for everyone; ca.key stays here" >&2
