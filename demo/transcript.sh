# What the demo shows: one attempt after the other, and a table of them all. Sourced by demo.sh.
# shellcheck shell=bash disable=SC2154

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
else
    bold='' green='' red='' plain=''
fi

table=()

# verdict WHAT EXPECTED SEEN
verdict() {
    local result="ok"
    [ "$2" = "$3" ] || {
        result=FAILED
        wrong=$((wrong + 1))
    }
    table+=("$result|$1|$2|$3")
    [ "$result" = ok ] || echo "   expected: $2"
    echo "   $3 ... $(coloured "$result")"
}

coloured() {
    if [ "$1" = ok ]; then echo "$green$1$plain"; else echo "$red$1$plain"; fi
}

try() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }
show() { echo "   \$ $*"; }

as_agent() {
    local state=$1
    shift
    "$programs/agent-gateway-sidecar" exec --state "$agents/$state/client" -- "$@"
}

# fetch STATE URL: sets `seen`: the status of the tunnel, then that of the page or why there is none.
fetch() {
    local status=0 codes tunnel page
    rm -f run/page run/refusal
    codes=$(as_agent "$1" curl -q -sS --max-time 20 --cacert certs/mock-ca.pem \
        -o run/page -w '%{http_connect} %{http_code}' "$2" 2>run/curl.err) || status=$?
    read -r tunnel page <<<"${codes:-000 000}"
    if [ "$status" = 0 ]; then
        seen="tunnel $tunnel, page $page"
        echo "   $(<run/page)"
        return
    fi
    # curl shows no body of a proxy's answer. The bare CONNECT that it sent before does: an agent
    # with another client sees the same. What the proxy's URL holds before @ is its token, which
    # must not be among anybody's arguments.
    local url=${2#https://}
    # shellcheck disable=SC2016
    as_agent "$1" sh -c 'user=${HTTPS_PROXY#http://}
        printf "header = \"Proxy-Authorization: Basic %s\"\n" \
            "$(printf %s "${user%@*}" | base64 -w 0)" |
        curl -q -sS --noproxy "*" --max-time 20 -o run/refusal -K - \
            -X CONNECT --request-target "$0" "http://${user#*@}"' "${url%%/*}" \
        2>run/connect.err || true
    seen="tunnel $tunnel, $(jq -r '.reason // "no reason"' run/refusal 2>/dev/null || cat run/curl.err)"
    [ ! -s run/refusal ] || echo "   $(<run/refusal)"
}

transcript() {
    local page=https://$docstore/health seen
    local curl="agent-gateway-sidecar exec -- curl"
    grant "$docstore"

    try "1. Without its sidecar the agent reaches nothing: the name exists for the gateway alone."
    show "curl $page"
    local status=0
    curl -q -sS --noproxy '*' --connect-timeout 10 --max-time 20 --cacert certs/mock-ca.pem \
        -o /dev/null "$page" 2>run/curl.err || status=$?
    echo "   $(head -n 1 run/curl.err)"
    if [ "$status" = 0 ]; then seen="reached"; else seen="not reached"; fi
    verdict "$docstore without the sidecar" "not reached" "$seen"

    try "2. org-alice signed agent-alpha's key for $docstore: the agent fetches a page by name."
    show "$curl $page"
    fetch agent-alpha "$page"
    [ "$(cat run/page 2>&1)" = '{"service":"docstore","status":"ok"}' ] || seen="$seen, not docstore's"
    verdict "$docstore, granted" "tunnel 200, page 200" "$seen"

    try "3. Another process of its machine finds the sidecar's port, but has no token for it."
    show "curl --proxy http://127.0.0.1:$proxy_port $page"
    seen="tunnel $(curl -q -sS --noproxy '' --proxy "http://127.0.0.1:$proxy_port" --max-time 20 \
        --cacert certs/mock-ca.pem -o /dev/null -w '%{http_connect}' "$page" 2>run/curl.err)" || true
    echo "   $(head -n 1 run/curl.err)"
    verdict "$docstore, without the token" "tunnel 407" "$seen"

    try "4. Nobody signed $messaging for it."
    show "$curl https://$messaging/health"
    fetch agent-alpha "https://$messaging/health"
    verdict "$messaging, not granted" "tunnel 403, no_permission" "$seen"

    try "5. Who can write the database makes up a principal for it, whom the root did not sign."
    show "agent-gateway-registry register-key org-mallory; … grant --key org-mallory …"
    make_up_principal
    show "$curl https://$messaging/health"
    fetch agent-alpha "https://$messaging/health"
    verdict "$messaging, made-up principal" "tunnel 403, signing_key_untrusted" "$seen"

    try "6. A stranger calls itself agent-alpha too, but its TPM holds another key."
    show "$curl $page    # the stranger's sidecar"
    fetch stranger "$page"
    verdict "$docstore, stranger's key" "tunnel 403, no_permission" "$seen"

    try "7. org-alice takes the permission back."
    show "agent-gateway-registry revoke --all-of --identity agent-alpha --destination $docstore --yes"
    registry revoke --all-of --identity agent-alpha --destination "$docstore" --yes
    show "$curl $page"
    fetch agent-alpha "$page"
    verdict "$docstore, revoked" "tunnel 403, permission_revoked" "$seen"

    try "8. And grants it again, so that you can go on from here."
    show "agent-gateway-registry grant --key org-alice --identity agent-alpha … --destination $docstore"
    grant "$docstore"
    show "$curl $page"
    fetch agent-alpha "$page"
    verdict "$docstore, granted again" "tunnel 200, page 200" "$seen"

    tool_calls
    audit
    print_table
}

# As somebody would who has the admin's database role, and asks no root.
make_up_principal() {
    local trust_root='' registry_id='' key=(--key-file run/mallory.pem)
    registry register-key org-mallory "${key[@]}"
    registry grant-scope org-mallory "$messaging"
    registry grant --key org-mallory "${key[@]}" --identity agent-alpha \
        --spki "$agents/agent-alpha/client/spki.hex" --destination "$messaging" --valid 30d
}

# Tools are called without the sidecar here, by what every machine has: openssl and curl.
tool_calls() {
    local seen body='{"message": "hello"}'
    make_caller

    try "9. A tool is called by POST /relay. Nobody signed a permission for this key to echo."
    call echo "$body"
    verdict "echo, not granted" "403 no_permission" "$seen"

    try "10. org-alice signs it: the call goes through, with a signed proof of its context (PoCA)."
    grant_caller "$echo_tool"
    call echo "$body"
    verdict "echo, granted" '200 {"echoed":{"message":"hello"}}' "$seen"

    try "11. The same proof a second time is a replay; one for another body is none for this."
    send "$body"
    verdict "echo, replayed" "403 poca_replay" "$seen"
    prove echo '{"message": "good bye"}'
    send "$body"
    verdict "echo, body changed" "403 poca_payload_hash_mismatch" "$seen"

    try "12. todos is called under its contract: what doesn't meet it never gets there."
    grant_caller "$todos_tool"
    call todos '{"tool": "todos", "payload": {"op": "create"}}'
    verdict "todos, title missing" "422 schema_request_invalid" "$seen"
    call todos '{"tool": "todos", "payload": {"op": "create", "title": "Buy milk"}}'
    verdict "todos, as it should be" '200 {"id":1,"title":"Buy milk"}' "$seen"
}

# What was decided above, and how each tunnel ended.
audit() {
    local seen=bad
    try "13. All of it was recorded before it was answered, in a chain that shows any change."
    show "jq -r '[.event, .decision, .destination // .tool, .reason[0]] | @tsv' audit.jsonl"
    jq -r '[.event, .decision, .destination // .tool, .reason[0]] | @tsv' logs/audit.jsonl |
        grep -v ^started | tail -n 4 | sed 's/^/   /'
    show "agent-gateway-registry audit verify audit.jsonl"
    verify_audit logs/audit.jsonl && seen=verified
    verdict "the audit, as written" verified "$seen"
    sed '0,/"decision":"deny"/s//"decision":"allow"/' logs/audit.jsonl >run/audit.jsonl
    show "agent-gateway-registry audit verify edited.jsonl    # a copy, in which one word was changed"
    seen=verified
    verify_audit run/audit.jsonl || seen=bad
    verdict "the audit, edited" bad "$seen"
}

verify_audit() {
    local status=0
    "$programs/agent-gateway-registry" audit verify "$1" >run/verified 2>&1 || status=$?
    sed 's/^/   /' run/verified
    return "$status"
}

# An agent's key and certificate in files, as they are where there is no TPM.
make_caller() {
    (umask 077 && openssl ecparam -name prime256v1 -genkey -noout -out secrets/caller.pem)
    openssl req -x509 -new -key secrets/caller.pem -subj /CN=agent-alpha -days 60 \
        -addext "1.3.6.1.4.1.57264.1.1=ASN1:UTF8String:agent-alpha" -out run/caller.pem
    openssl pkey -in secrets/caller.pem -pubout -outform DER | od -An -v -tx1 | tr -d ' \n' \
        >run/caller-spki.hex
}

grant_caller() {
    show "agent-gateway-registry grant --key org-alice --identity agent-alpha --spki caller-spki.hex --destination $1"
    registry grant --key org-alice --tcti "$principal_tcti" --identity agent-alpha \
        --spki run/caller-spki.hex --destination "$1" --valid 30d
}

base64url() { base64 -w 0 | tr '+/' '-_' | tr -d '='; }

# prove TOOL BODY: the headers of a proof, for one call within five minutes.
prove() {
    local hash
    hash=$(printf %s "$2" | sha256sum | cut -d ' ' -f 1)
    jq -nj --arg tool "$1" --arg hash "$hash" --arg nonce "$(openssl rand -hex 16)" \
        --arg exp "$(date -u -d '5 minutes' +%Y-%m-%dT%H:%M:%SZ)" \
        '{ver: "poca-1", caller_id: "agent-alpha", tool: $tool, intent: "the demo", scopes: [],
          payload_sha256: $hash, nonce: $nonce, exp: $exp} | tojson' | base64url >run/manifest
    openssl pkeyutl -sign -rawin -inkey secrets/agent-alpha-poca.pem -in run/manifest |
        base64url >run/signature
}

# send BODY: with the proof that there is; sets `seen`: the status, and what was said or why not.
send() {
    local code
    code=$(curl -q -sS --noproxy '*' --max-time 20 --cacert certs/server-ca.pem \
        --cert run/caller.pem --key secrets/caller.pem -H "content-type: application/json" \
        -H "x-poca-manifest: $(<run/manifest)" -H "x-poca-signature: $(<run/signature)" \
        --data-binary "$1" -o run/answer -w '%{http_code}' \
        "https://127.0.0.1:$gateway_port/relay" 2>run/curl.err) || true
    echo "   $(cat run/answer 2>/dev/null || cat run/curl.err)"
    seen="$code $(jq -rc '.reason // .' run/answer 2>/dev/null || echo "no answer")"
}

# call TOOL BODY
call() {
    show "curl --cert caller.pem --key … -H \"x-poca-manifest: …\" -H \"x-poca-signature: …\" -d '$2' https://gateway/relay"
    prove "$1" "$2"
    send "$2"
}

print_table() {
    local row result what expected seen
    printf '\n%s%-36s%-35s%-35s%s%s\n' "$bold" "agent-alpha to" expected seen result "$plain"
    for row in "${table[@]}"; do
        IFS='|' read -r result what expected seen <<<"$row"
        printf '%-36s%-35s%-35s%s\n' "$what" "$expected" "$seen" "$(coloured "$result")"
    done
    if [ "$wrong" = 0 ]; then
        printf '\nAll %d came out as they should.\n' "${#table[@]}"
    else
        printf '\n%d of %d did not come out as they should; the logs are in %s/logs.\n' \
            "$wrong" "${#table[@]}" "$demo"
    fi
}

use_by_hand() {
    cat <<END

Everything still runs. To go on by hand (logs are in $demo/logs):

  . $(printf %q "$demo")/env
  agent-gateway-sidecar exec -- curl --cacert "\$DEMO/certs/mock-ca.pem" https://$docstore/documents
  agent-gateway-registry grant --key org-alice --identity agent-alpha --spki "\$AGENT_GATEWAY_STATE/spki.hex" --destination $messaging --valid 1h
  agent-gateway-sidecar exec -- curl --cacert "\$DEMO/certs/mock-ca.pem" https://$messaging/messages
  agent-gateway-registry list
  $(printf %q "$root")/demo/demo-agent.sh prompt agent-alpha --prompt "Access https://$docstore/documents with curl"
  grpcurl -plaintext 127.0.0.1:$admin_grpc_port list

To stop and remove it: $down_command
END
}
