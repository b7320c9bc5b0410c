#!/bin/sh
# An authority of one's own, and one certificate that scheduler, workers and sweep show each other:
# sh certificates.sh tls
# Whoever has key.pem may use the cluster. The authority's key is not kept: it signs nothing else.
set -eu
umask 077
mkdir -p "$1"
cd "$1"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 \
    -subj "/CN=authority of the sweeps" -addext "keyUsage=critical,keyCertSign" \
    -keyout authority.key -out ca.pem
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
    -subj "/CN=a sweep" -keyout key.pem -out request.pem
openssl x509 -req -in request.pem -CA ca.pem -CAkey authority.key -set_serial 1 -days 365 \
    -out cert.pem
rm authority.key request.pem
