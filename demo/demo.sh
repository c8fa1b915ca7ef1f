#!/usr/bin/env bash
# The whole gateway as local processes, and a transcript of what it allows and refuses.
#
# Everything lives in .demo/ in the project folder, is made anew by each `setup`, and goes with
# `teardown`. stack.sh starts the parts, transcript.sh tries them; demo-agent.sh makes agents.
set -euo pipefail

usage() {
    cat >&2 <<'END'
usage: demo.sh setup      start everything, show what is allowed and what is refused, leave it running
       demo.sh status     show what of it runs, and the agents
       demo.sh teardown   stop everything and remove it

Environment:
  AGENT_GATEWAY_DEMO_DIR                     where it lives (.demo in the project folder)
  AGENT_STATE                                where its agents live (agents in there)
  AGENT_GATEWAY_TPM_USER_PIN                 the PIN of the principal's key (a random one)
  AGENT_GATEWAY_TPM_SO_PIN                   the PIN of its TPM's owner (a random one)
  AGENT_GATEWAY_DEMO_TPM_HANDLE              the agent's key in its TPM (0x81010004)
  AGENT_GATEWAY_DEMO_SWTPM_PORT              the agent's simulated TPM: this and the next (2321)
  AGENT_GATEWAY_DEMO_PRINCIPAL_SWTPM_PORT    the principal's: this and the next (2331)
  AGENT_GATEWAY_DEMO_STRANGER_SWTPM_PORT     the stranger's: this and the next (2341)
  AGENT_GATEWAY_DEMO_ROOT_SWTPM_PORT         that of the root of trust: this and the next (2351)
  AGENT_GATEWAY_DEMO_PROXY_PORT              the agent's sidecar (3128)
  AGENT_GATEWAY_DEMO_STRANGER_PROXY_PORT     the stranger's sidecar (3129)
  AGENT_GATEWAY_DEMO_GATEWAY_PORT            Envoy (8443)
  AGENT_GATEWAY_DEMO_ENVOY_ADMIN_PORT        Envoy's admin interface (9901)
  AGENT_GATEWAY_DEMO_GRPC_PORT               the authorization service (5051)
  AGENT_GATEWAY_DEMO_ADMIN_GRPC_PORT         its reflection, health and debugging (5052)
  AGENT_GATEWAY_DEMO_ADMIN_HTTP_PORT         its probes and metrics (9464)
  AGENT_GATEWAY_DEMO_POSTGRES_PORT           the registry's database (15432)
  AGENT_GATEWAY_DEMO_SERVICE_PORT            docstore on 127.0.0.2, messaging on 127.0.0.3 (8443)
  AGENT_GATEWAY_DEMO_TOOL_PORT               echo on 127.0.0.4, todos on 127.0.0.5 (8081)
A port that is taken is replaced by a free one, unless its variable is set.

Exit status: 0 all came out right, 1 something did not or does not run, 64 wrong usage, 69 the demo
did not start
END
    exit 64
}

root=$(cd "$(dirname "$0")/.." && pwd -P)
demo=$(realpath -m -- "${AGENT_GATEWAY_DEMO_DIR:-$root/.demo}")
agents=$(realpath -m -- "${AGENT_STATE:-$demo/agents}")
down_command="make demo-down"
[ -z "${AGENT_GATEWAY_DEMO_DIR:-}" ] ||
    down_command="$(printf 'AGENT_GATEWAY_DEMO_DIR=%q' "$demo") make demo-down"

# shellcheck source=testbed/ports.sh
. "$root/testbed/ports.sh"
# shellcheck source=demo/processes.sh
. "$root/demo/processes.sh"
# shellcheck source=demo/stack.sh
. "$root/demo/stack.sh"
# shellcheck source=demo/transcript.sh
. "$root/demo/transcript.sh"

# What this shell happens to have set must not reach the demo's parts.
forget_environment() {
    local name
    for name in $(compgen -e); do
        case $name in
        AGENT_GATEWAY_DEMO_*) ;;
        AGENT_GATEWAY_* | DATABASE_URL | PG* | RUST_LOG) unset "$name" ;;
        # Names that the service takes from the relay gateway before it.
        OPA_URL | BACKEND_URL | TODOS_URL | AUDIT_PATH | POCA_* | EGRESS_CONFIG_PATH) unset "$name" ;;
        esac
    done
}

setup() {
    trap finish EXIT
    heed_signals
    # These may write outside the demo's folder, so they keep the caller's umask.
    step setup "installing what is missing"
    "$root/testbed/setup"
    step build "building the programs (minutes, the first time)"
    build

    umask 077
    step folders "stopping an older demo, choosing ports"
    make_folders
    choose_ports
    step certs "making keys and certificates"
    "$root/demo/generate-server-certs.sh" certs
    step postgres "starting Postgres, with a role for each job"
    start_postgres
    step swtpm-root "giving the root of trust a TPM, and a key in it"
    start_root
    step services "starting the services docstore and messaging"
    start_services
    step authz "starting the authorization service"
    start_authz
    step envoy "starting Envoy"
    start_envoy
    step swtpm-principal "giving org-alice, the principal, a TPM, a key and a scope; the root signs both"
    enrol_principal
    step agent-alpha "giving agent-alpha a TPM, a key in it, and a sidecar"
    write_settings
    start_agent
    step stranger "giving a stranger the same name, but another TPM and key"
    start_stranger
    write_environment
    doing="the transcript" log=authz
    transcript
    finished=yes
    use_by_hand
    [ "$wrong" = 0 ]
}

# Runs at every end of `setup`. What an earlier run made is touched only once this one has begun to.
finish() {
    local status=$?
    trap - EXIT
    # A second Ctrl-C must not leave half of it running.
    trap '' INT TERM HUP
    [ -z "$finished" ] || exit "$status"
    if [ -n "$interrupted" ]; then
        echo >&2
        say "interrupted"
        [ -z "$made" ] || take_down
        exit "$status"
    fi
    echo "error: the demo failed at \"$doing\" (exit status $status)" >&2
    explain
    if [ -n "$made" ]; then
        stop_processes
        say "everything is stopped; the logs are in $demo/logs, and $down_command removes them"
    fi
    [ "$status" = 64 ] || status=69
    exit "$status"
}

finished='' made='' wrong=0 doing='' log='' steps=0
step() {
    steps=$((steps + 1)) log=$1 doing=$2
    printf 'demo: [%2d/12] %s\n' "$steps" "$2" >&2
}

[ $# = 1 ] || usage
user_pin=${AGENT_GATEWAY_TPM_USER_PIN:-} owner_pin=${AGENT_GATEWAY_TPM_SO_PIN:-}
forget_environment
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
case $1 in
setup) setup ;;
status) status ;;
teardown)
    take_down
    say "nothing of it is left in $demo"
    ;;
*) usage ;;
esac
