#!/usr/bin/env bash
# What stands in for an AI agent: fetches every https:// URL of its prompt, one after the other.
# It reaches them as any agent would, through the proxy in HTTPS_PROXY.
#
# Exit status: 0 all were fetched, 1 one was not, 64 there was none
set -uo pipefail

urls=$(grep -oE "https://[^][[:space:]\"'\`<>(){}]+" <<<"${1:-}" | sed 's/[.,;:!?]*$//') || {
    echo "error: the prompt holds no https:// URL" >&2
    echo "hint: say what is to be fetched, as in: Access https://docstore:8443/documents" >&2
    exit 64
}
page=$(mktemp) || exit
trap 'rm -f "$page"' EXIT

# reason HOST:PORT: why the proxy refuses it. curl shows no body of such an answer; a bare CONNECT
# does. What the proxy's URL holds before @ is its token, which must not be among the arguments.
reason() {
    local user=${HTTPS_PROXY#http://}
    printf 'header = "Proxy-Authorization: Basic %s"\n' "$(printf %s "${user%@*}" | base64 -w 0)" |
        curl -q -sS --noproxy '*' --max-time 20 -o "$page" -K - -X CONNECT \
            --request-target "$1" "http://${user#*@}" 2>/dev/null
    jq -r '.reason // "no reason"' "$page" 2>/dev/null || echo "no reason"
}

status=0
while read -r url; do
    echo "GET $url"
    if codes=$(curl -q -sS --max-time 20 --max-filesize 1000000 -o "$page" -w '%{http_connect} %{http_code}' "$url" 2>&1); then
        echo "${codes#* }"
        # With one end of line, whether it has one or not.
        printf '%s\n' "$(tr -d '\0' <"$page")"
        case ${codes#* } in
        2??) ;;
        *) status=1 ;;
        esac
    else
        host=${url#https://} host=${host%%[/?#]*}
        case $host in
        *:*) ;;
        *) host=$host:443 ;;
        esac
        echo "not reached: $(reason "$host")"
        status=1
    fi
done <<<"$urls"
exit "$status"
