#!/usr/bin/env bash
# Makes the demo's TLS material, new each time: the gateway's certificate and the services', each
# with a certificate authority of its own. The authorities' private keys are gone when this ends:
# nothing is to be signed by them ever again.
set -euo pipefail
umask 077

[ $# = 1 ] || {
    echo "usage: generate-server-certs.sh DIR" >&2
    exit 64
}
mkdir -p -- "$1"
cd -- "$1"
trap 'rm -f ca-key.tmp' EXIT

# Without the system's openssl.cnf, which would add extensions of its own.
request() {
    openssl req -x509 -config <(printf '[req]\nprompt = no\ndistinguished_name = name\n[name]\n') \
        -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -days 60 \
        -addext subjectKeyIdentifier=hash "$@" 2>openssl.log || {
        cat openssl.log >&2
        exit 70
    }
    rm -f openssl.log
}

# certificates CA CA_NAME LEAF LEAF_NAME ALTERNATIVE_NAMES [USAGE]
certificates() {
    request -subj "/CN=$2" -keyout ca-key.tmp -out "$1.pem" \
        -addext basicConstraints=critical,CA:TRUE,pathlen:0 \
        -addext keyUsage=critical,keyCertSign
    rm -f "$3-key.pem" # openssl would keep the mode of an old one
    request -subj "/CN=$4" -keyout "$3-key.pem" -out "$3.pem" -CA "$1.pem" -CAkey ca-key.tmp \
        -addext basicConstraints=critical,CA:FALSE \
        -addext keyUsage=critical,digitalSignature \
        -addext "extendedKeyUsage=${6:-serverAuth}" \
        -addext authorityKeyIdentifier=keyid \
        -addext "subjectAltName=$5"
    rm -f ca-key.tmp
}

certificates server-ca "agent-gateway demo CA" server gateway \
    DNS:gateway,DNS:localhost,IP:127.0.0.1,IP:::1
certificates mock-ca "mock services CA" mock-services mock-services \
    DNS:docstore,DNS:messaging,DNS:localhost

# With which Envoy and the service tell each other who they are, where they are on machines of their own.
certificates authz-ca "authorization CA" authz authz DNS:authz
certificates envoy-ca "Envoy's CA" envoy envoy DNS:envoy clientAuth

# Whom Envoy trusts for tools behind TLS. The demo's own speak plain HTTP.
cp mock-ca.pem tools-ca.pem
