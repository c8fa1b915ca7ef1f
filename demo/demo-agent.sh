#!/usr/bin/env bash
# Agents of the running demo. Each has a folder of its own, with its simulated TPM, its key in it,
# its sidecar, and the folder that it works in.
set -euo pipefail

usage() {
    cat >&2 <<'END'
usage: demo-agent.sh create --identity IDENTITY [--name NAME] [--grant DEST]…
                     make an agent, let org-alice sign for it, and print its name alone
       demo-agent.sh prompt NAME --prompt TEXT [--agent-command COMMAND]
                     let it work, with nothing but its sidecar to reach others by
       demo-agent.sh list
       demo-agent.sh delete NAME
                     stop it, revoke what was signed for it, remove its folder

DEST is HOST:PORT; docstore and messaging need no port. COMMAND is run by a shell, with the prompt
as its last argument: 'claude -p' if claude is installed and logged in, which then also needs
--grant api.anthropic.com; else a script that fetches the URLs it is told to.

Environment:
  AGENT_STATE                      where the agents are (agents in the demo's folder)
  AGENT_GATEWAY_DEMO_DIR           the demo's folder (.demo in the project folder)
  AGENT_GATEWAY_DATABASE_URL       the registry, to be written (the demo's)
  AGENT_GATEWAY_TPM_USER_PIN       the PIN of org-alice's key (the demo's)
  AGENT_GATEWAY_DEMO_SWTPM_PORT    the agent's simulated TPM: this and the next (2321, or free ones)
  AGENT_GATEWAY_DEMO_TPM_HANDLE    the agent's key in it (0x81010004)
  AGENT_GATEWAY_DEMO_PROXY_PORT    the agent's sidecar (3128, or a free one)

Exit status: that of the agent's command (prompt); 0 done, 64 wrong usage, 66 no such agent, 69 not
available, 73 there is one by that name, 130 interrupted
END
    exit 64
}

root=$(cd "$(dirname "$0")/.." && pwd -P)
demo=$(realpath -m -- "${AGENT_GATEWAY_DEMO_DIR:-$root/.demo}")
agents=$(realpath -m -- "${AGENT_STATE:-$demo/agents}")
# shellcheck source=testbed/ports.sh
. "$root/testbed/ports.sh"
# shellcheck source=demo/processes.sh
. "$root/demo/processes.sh"

# Where the demo's parts are, written by stack.sh.
find_demo() {
    [ -s "$demo/settings" ] || fail "no demo is set up in $demo" "make demo"
    # shellcheck disable=SC1091
    . "$demo/settings"
}

# enter NAME: takes the agents' folder for this command alone. The agent's is $agent from here on.
enter() {
    [[ $1 =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ ]] ||
        fail "$1 is no name for an agent" "letters, digits, . _ and -: give one with --name" 64
    agent=$agents/$1
    mkdir -p -m 700 -- "$agents"
    exec 9<"$agents"
    flock -w 60 9 || fail "another demo-agent.sh works in $agents"
}

# As enter; the agent must be there, in full.
enter_existing() {
    enter "$1"
    [ -s "$agent/settings" ] || fail "there is no agent $1 in $agents" "demo-agent.sh list" 66
    # shellcheck disable=SC1091
    . "$agent/settings"
    cd -- "$agent"
}

# The principal's own tool, which judges by the same roots of trust as the service. The agent gets to
# see neither the registry's URL nor the PIN.
registry() {
    AGENT_GATEWAY_DATABASE_URL=${AGENT_GATEWAY_DATABASE_URL:-$(<"$demo/secrets/admin.url")} \
        AGENT_GATEWAY_TPM_USER_PIN=${AGENT_GATEWAY_TPM_USER_PIN:-$(<"$demo/secrets/principal.pin")} \
        AGENT_GATEWAY_TRUST_ROOTS=${AGENT_GATEWAY_TRUST_ROOTS:-$trust_root} \
        AGENT_GATEWAY_REGISTRY_ID=${AGENT_GATEWAY_REGISTRY_ID:-$registry_id} \
        AGENT_GATEWAY_TCTI=$principal_tcti "$programs/agent-gateway-registry" "$@"
}

sidecar() {
    env -u AGENT_GATEWAY_DATABASE_URL -u DATABASE_URL -u AGENT_GATEWAY_TPM_USER_PIN \
        -u AGENT_GATEWAY_TPM_SO_PIN "$programs/agent-gateway-sidecar" "$@"
}

# port DEFAULT COUNT CHOSEN: prints the port to use. What was CHOSEN must be free.
port() {
    local value=${3:-$1} offset
    [[ $value =~ ^[1-9][0-9]{0,4}$ && $((value + $2 - 1)) -le 65535 ]] ||
        fail "$value is no port" "a number from 1 to 65535" 64
    for ((offset = 0; offset < $2; offset++)); do
        port_in_use $((value + offset)) || continue
        [ -z "$3" ] || fail "port $((value + offset)) is in use" "choose another, or none" 64
        value=$(free_port "$2")
        break
    done
    echo "$value"
}

# destination DEST: as the registry knows it; the demo's services have a port of their own.
destination() {
    case " $services " in
    *" $1 "*) echo "$1:$service_port" ;;
    *) echo "$1" ;;
    esac
}

start_agent() {
    running run/swtpm.pid || start_tpm swtpm client/swtpm "$swtpm_port"
    log=init
    sidecar init --identity "$identity" --state client \
        --tcti "swtpm:host=127.0.0.1,port=$swtpm_port" --handle "$tpm_handle" >logs/init.log 2>&1
    cp client/machine-client.pem "$demo/certs/machine-client.pem"
    running run/sidecar.pid || {
        start sidecar env -u AGENT_GATEWAY_DATABASE_URL -u DATABASE_URL \
            -u AGENT_GATEWAY_TPM_USER_PIN -u AGENT_GATEWAY_TPM_SO_PIN \
            "$programs/agent-gateway-sidecar" run --gateway "127.0.0.1:$gateway_port" \
            --ca "$demo/certs/server-ca.pem" --state client --listen "127.0.0.1:$proxy_port"
        until_true "the sidecar to listen" listens 127.0.0.1 "$proxy_port"
    }
    log=
}

# Nothing to revoke is a success.
revoke_all() {
    local status=0
    registry revoke --all-of --identity "$identity" --spki "$agent/client/spki.hex" --yes \
        >"$agent/logs/registry.log" 2>&1 || status=$?
    [ "$status" -le 1 ] || {
        cat "$agent/logs/registry.log" >&2
        return "$status"
    }
}

remove_folder() {
    # What tells that it is an agent's goes last: an interrupted removal can be repeated.
    find "$agent" -mindepth 1 ! -path "$agent/settings" ! -path "$agent/.agent-gateway-demo-agent" -delete
    rm -f -- "$agent/settings" "$agent/.agent-gateway-demo-agent"
    rmdir -- "$agent"
}

create() {
    local name='' granted=() dest
    identity=''
    while [ $# -gt 0 ]; do
        [ $# -ge 2 ] || usage
        case $1 in
        --identity) identity=$2 ;;
        --name) name=$2 ;;
        --grant) granted+=("$2") ;;
        *) usage ;;
        esac
        shift 2
    done
    [ -n "$identity" ] || usage
    name=${name:-$identity}
    find_demo
    enter "$name"
    if [ -e "$agent" ]; then
        [ ! -s "$agent/settings" ] || fail "there is an agent $name already" \
            "demo-agent.sh prompt $name, or demo-agent.sh delete $name" 73
        [ -e "$agent/.agent-gateway-demo-agent" ] ||
            fail "$agent holds other things than an agent" "choose another --name" 73
        # Somebody's power failed half-way.
        stop_all "$agent"/run/*.pid
        remove_folder
    fi
    trap 'undo_create $?' EXIT
    heed_signals
    swtpm_port=$(port 2321 2 "${AGENT_GATEWAY_DEMO_SWTPM_PORT:-}")
    proxy_port=$(port 3128 1 "${AGENT_GATEWAY_DEMO_PROXY_PORT:-}")
    tpm_handle=${AGENT_GATEWAY_DEMO_TPM_HANDLE:-0x81010004}
    umask 077
    mkdir -- "$agent"
    made=yes
    : >"$agent/.agent-gateway-demo-agent"
    cd -- "$agent"
    mkdir client client/swtpm logs run work
    start_agent
    for dest in "${!granted[@]}"; do granted[dest]=$(destination "${granted[dest]}"); done
    if [ ${#granted[@]} -gt 0 ]; then
        log=registry
        registry grant --key org-alice --identity "$identity" --spki client/spki.hex --valid 30d \
            --destination "${granted[@]}" >logs/registry.log 2>&1
    fi
    # Whole or not at all, and the last thing that is done.
    local variable
    for variable in identity swtpm_port proxy_port tpm_handle; do
        printf '%s=%q\n' "$variable" "${!variable}"
    done >settings.new
    hold_signals
    mv settings.new settings
    trap - EXIT
    say "$name may reach: ${granted[*]:-nothing yet}"
    echo "$name"
}

made=''
undo_create() {
    trap - EXIT
    trap '' INT TERM HUP
    if [ -n "$made" ]; then
        if [ -z "$interrupted" ] && [ -n "${log:-}" ] && [ -s "$agent/logs/$log.log" ]; then
            tail -n 15 "$agent/logs/$log.log" >&2
        fi
        stop_all "$agent"/run/*.pid
        [ ! -e "$agent/client/spki.hex" ] || revoke_all || true
        remove_folder
        say "nothing is left of the agent"
    fi
    exit "$1"
}

prompt() {
    local name=${1:-} text='' command=''
    [ $# -ge 1 ] || usage
    shift
    while [ $# -gt 0 ]; do
        [ $# -ge 2 ] || usage
        case $1 in
        --prompt) text=$2 ;;
        --agent-command) command=$2 ;;
        *) usage ;;
        esac
        shift 2
    done
    [ -n "$text" ] || usage
    find_demo
    enter_existing "$name"
    start_agent || fail "the sidecar can't be set up: see $agent/logs/init.log"
    cd work
    if [ -z "$command" ] && claude_is_there; then
        command="claude -p '--allowedTools=Bash(curl:*)'"
    elif [ -z "$command" ]; then
        command=$(printf %q "$root/demo/scripted-agent.sh")
        say "no claude is there that is logged in: a script fetches the URLs of the prompt"
    fi
    # The agent must not hold the folder of all of them.
    exec 9<&-
    # shellcheck disable=SC2016
    sidecar exec --state "$agent/client" --ca-bundle "$demo/certs/mock-ca.pem" -- \
        bash -c "$command"' "$1"' agent "$text"
}

claude_is_there() {
    command -v claude >/dev/null || return 1
    [ -n "${ANTHROPIC_API_KEY:-}" ] || timeout 10 claude auth status >/dev/null 2>&1 </dev/null
}

# A row may be active and yet count for nothing: its key not signed by the root, say.
may_reach() {
    local of=(--identity "$identity" --spki "$agent/client/spki.hex") dest
    registry list permissions "${of[@]}" --state active --json |
        jq -r '[.[].destination] | unique | .[]' |
        while read -r dest; do
            ! registry can-i "${of[@]}" --destination "$dest" >/dev/null || echo "$dest"
        done | paste -s -d ' '
}

list() {
    find_demo
    local settings name state
    {
        printf 'NAME\tIDENTITY\tSIDECAR\tMAY REACH\n'
        for settings in "$agents"/*/settings; do
            [ -s "$settings" ] || continue
            agent=$(dirname "$settings")
            name=$(basename "$agent")
            # shellcheck disable=SC1090
            . "$settings"
            state=stopped
            ! running "$agent/run/sidecar.pid" || state=running
            printf '%s\t%q\t%s\t%s\n' "$name" "$identity" "$state" "$(may_reach)"
        done
    } | column -t -s $'\t'
}

delete() {
    [ $# = 1 ] || usage
    find_demo
    enter_existing "$1"
    stop_all "$agent"/run/*.pid
    revoke_all || fail "$1 is stopped, but what was signed for it is not revoked" \
        "delete it again once the registry can be reached"
    cd /
    remove_folder
    say "$1 is gone"
}

[ $# -ge 1 ] || usage
what=$1
shift
case $what in
create | prompt | delete) "$what" "$@" ;;
list)
    [ $# = 0 ] || usage
    list
    ;;
*) usage ;;
esac
