#!/usr/bin/env bash
# Tries demo-agent.sh on the demo that runs: what it makes works, and what is undone is gone.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd -P)
demo=$(realpath -m -- "${AGENT_GATEWAY_DEMO_DIR:-$root/.demo}")
# shellcheck disable=SC1091
. "$demo/settings"
folder=$(mktemp -d)
export AGENT_STATE=$folder/agents
unset AGENT_GATEWAY_DATABASE_URL AGENT_GATEWAY_TPM_USER_PIN AGENT_GATEWAY_DEMO_SWTPM_PORT \
    AGENT_GATEWAY_DEMO_PROXY_PORT ANTHROPIC_API_KEY
# Without any claude that happens to be there.
fetch=$(printf %q "$root/demo/scripted-agent.sh")
docstore=https://docstore:$service_port messaging=https://messaging:$service_port

clean_up() {
    local agent
    for agent in "$AGENT_STATE"/*/; do
        [ ! -d "$agent" ] || agents delete "$(basename "$agent")" || true
    done
    rm -rf -- "$folder"
}
trap clean_up EXIT

agents() { "$root/demo/demo-agent.sh" "$@"; }
tried=0
# is WHAT SEEN EXPECTED
is() {
    tried=$((tried + 1))
    [ "$2" = "$3" ] || {
        printf 'FAILED: %s\n expected: %s\n seen:     %s\n' "$1" "$3" "$2" >&2
        cat "$folder/stderr" >&2
        exit 1
    }
    echo "ok: $1"
}
# run COMMAND…: sets `out` and `status`.
run() {
    status=0
    out=$("$@" 2>"$folder/stderr") || status=$?
}
# Rows of an identity that are not revoked.
rows() {
    AGENT_GATEWAY_DATABASE_URL=$(<"$demo/secrets/admin.url") "$programs/agent-gateway-registry" \
        list --identity "$1" --state active --json | jq length
}

run agents create --identity agent-beta --grant docstore --grant messaging
is "create prints the handle alone" "$status $out" "0 agent-beta"
run agents create --identity agent-beta --name gamma --grant docstore
is "an agent may have another name than its identity" "$status $out" "0 gamma"
is "rows are there for both" "$(rows agent-beta)" 3
run agents create --identity agent-beta
is "an agent is made only once" "$status $out" "73 "
is "and stays as it was" "$(rows agent-beta)" 3
run agents create --identity ../x
is "a name is no path" "$status" 64
run agents create --identity agent-delta --grant elsewhere
is "what org-alice may not delegate is refused" "$status $(rows agent-delta)" "65 0"
is "and nothing is left of the agent" "$(ls "$AGENT_STATE")" $'agent-beta\ngamma'

run agents prompt agent-beta --agent-command "$fetch" \
    --prompt "Access $docstore/health with curl, then $messaging/health."
is "an agent reaches what is granted" "$status $out" "0 GET $docstore/health
200
{\"service\":\"docstore\",\"status\":\"ok\"}
GET $messaging/health
200
{\"service\":\"messaging\",\"status\":\"ok\"}"
run agents prompt gamma --agent-command "$fetch" --prompt "Access $messaging/health"
is "another agent does not, though it has the same identity" "$status $out" \
    "1 GET $messaging/health
not reached: no_permission"
run agents prompt gamma --prompt x --agent-command 'env >env; ls -a; pwd; exit 7 #'
is "an agent works in its own folder, and its status is told" "$status ${out##*$'\n'}" \
    "7 $AGENT_STATE/gamma/work"
is "it sees neither the registry nor a PIN" \
    "$(grep -cE 'DATABASE_URL|_PIN=' "$AGENT_STATE/gamma/work/env" || true)" 0
run agents prompt nobody --prompt x
is "there must be such an agent" "$status" 66

# Processes of an agent, whose folder may be gone.
processes() { find /proc -maxdepth 2 -name cwd -lname "$AGENT_STATE/$1*" 2>/dev/null | wc -l; }

xargs kill < <(cut -d' ' -f1 "$AGENT_STATE"/gamma/run/*.pid)
for _ in {1..200}; do
    [ "$(processes gamma)" != 0 ] || break
    sleep 0.1
done
run agents prompt gamma --agent-command "$fetch" --prompt "Access $docstore/health"
is "an agent that was stopped is started again, with the same key" "$status" 0
run agents list
is "list shows them" "$(awk 'NR > 1 { print $1, $2, $3, $4, $5 }' <<<"$out")" \
    "agent-beta agent-beta running docstore:$service_port messaging:$service_port
gamma agent-beta running docstore:$service_port "

is "an agent has two processes" "$(processes gamma)" 2

# Interrupted at several moments; each must end as if it had not begun.
for moment in 0.1 0.3 0.6 1; do
    setsid -w timeout -s INT "$moment" "$root/demo/demo-agent.sh" create --identity agent-epsilon \
        --grant docstore >"$folder/made" 2>"$folder/stderr" || true
    if [ -s "$folder/made" ]; then
        agents delete agent-epsilon 2>"$folder/stderr"
    fi
    is "interrupted after $moment s, create leaves nothing" \
        "$(ls "$AGENT_STATE") $(rows agent-epsilon) $(processes agent-epsilon)" \
        $'agent-beta\ngamma 0 0'
done

run agents delete agent-beta
is "delete removes the agent's state and rows, and no other's" \
    "$status $(ls "$AGENT_STATE") $(rows agent-beta)" "0 gamma 1"
is "and its processes" "$(processes agent-beta) $(processes gamma)" "0 2"
run agents delete agent-beta
is "there is nothing to delete twice" "$status" 66
run agents create --identity agent-beta --grant docstore
is "an agent can be made anew under its name" "$status $out" "0 agent-beta"
echo "$tried tried, all as it should be"
