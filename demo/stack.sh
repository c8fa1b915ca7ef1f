# The demo's parts: how each is set up, started and stopped. Sourced by demo.sh.
# shellcheck shell=bash disable=SC2154

# Programs come from wherever cargo puts them (CARGO_TARGET_DIR, or its configuration).
build() {
    (cd "$root" && cargo build --bins -p authz-service -p registry-cli -p sidecar -p demo)
    local target
    target=$(cd "$root" && cargo metadata --no-deps --format-version 1 | jq -r .target_directory)
    programs=$target/debug
}

# One demo.sh at a time works in a folder.
lock_folder() {
    mkdir -p -- "$demo"
    # Processes started from here must not hold the lock on: see start.
    exec 9<"$demo"
    flock -n 9 || fail "another demo.sh works in $demo"
}

make_folders() {
    lock_folder
    empty_folder
    : >"$demo/.agent-gateway-demo"
    made=yes
    # The user postgres has to pass through to its own folder, and sees nothing else.
    if [ "$(id -u)" = 0 ]; then chmod 711 "$demo"; else chmod 700 "$demo"; fi
    cd -- "$demo" || exit
    mkdir logs run secrets tpm agents
}

# port VARIABLE [COUNT]: settles a port variable; in capitals, with AGENT_GATEWAY_DEMO_ before it,
# it is the user's. COUNT ports in a row are used.
port() {
    local variable=$1 count=${2:-1} default=${!1} chosen offset taken=''
    chosen=AGENT_GATEWAY_DEMO_${variable^^}
    local value=${!chosen:-$default}
    [[ $value =~ ^[1-9][0-9]{0,4}$ && $((value + count - 1)) -le 65535 ]] ||
        fail "$chosen is no port: $value" "a number from 1 to 65535" 64
    for ((offset = 0; offset < count; offset++)); do
        ! port_in_use $((value + offset)) || taken=$((value + offset))
    done
    if [ -n "$taken" ]; then
        [ -z "${!chosen:-}" ] || fail "port $taken is in use, but $chosen asks for it" \
            "without $chosen a free port is taken" 64
        value=$(free_port "$count")
        say "port $taken is in use: ${variable//_/ } is $value"
    fi
    printf -v "$variable" %s "$value"
}

choose_ports() {
    swtpm_port=2321 principal_swtpm_port=2331 stranger_swtpm_port=2341 root_swtpm_port=2351
    proxy_port=3128 stranger_proxy_port=3129
    gateway_port=8443 envoy_admin_port=9901
    # Not the service's own 50051 and 50052: they lie where the kernel takes ports for outgoing
    # connections, and one that closed a minute ago still keeps a listener off its port.
    grpc_port=5051 admin_grpc_port=5052 admin_http_port=9464
    postgres_port=15432 service_port=8443 tool_port=8081
    local name
    for name in swtpm_port principal_swtpm_port stranger_swtpm_port root_swtpm_port; do
        port "$name" 2
    done
    for name in proxy_port stranger_proxy_port gateway_port envoy_admin_port grpc_port \
        admin_grpc_port admin_http_port postgres_port service_port tool_port; do
        port "$name"
    done
    # The services' addresses are their own, so that both can have the port that Envoy has too.
    docstore=docstore:$service_port messaging=messaging:$service_port
    echo_tool=echo:$tool_port todos_tool=todos:$tool_port
}

secret() { openssl rand -hex 24; }

# pin CHOSEN: without an end of line, which tpm2_changeauth would take for a part of it.
pin() { printf %s "${1:-$(openssl rand -hex 8)}"; }

start_postgres() {
    local data=$demo/postgres
    hold_signals
    if [ "$(id -u)" = 0 ] && ! setpriv --reuid=postgres --regid=postgres --init-groups -- test -x "$demo"; then
        data=$(trap '' INT TERM HUP; mktemp -d /var/tmp/agent-gateway-demo.XXXXXX)
        say "the user postgres can't enter $demo, so its data is in $data"
    fi
    echo "$data" >run/postgres.dir
    secret >secrets/postgres.password
    # In sessions of their own: a Ctrl-C half-way would leave processes that nobody knows. From /,
    # as initdb complains of a folder that the user postgres can't enter.
    setsid -w env -C / "$root/testbed/postgres-cluster" init "$data" --auth scram-sha-256 \
        --pwfile "$demo/secrets/postgres.password" >logs/postgres.log 2>&1 9<&-
    setsid -w "$root/testbed/postgres-cluster" start "$data" "$postgres_port" \
        >>logs/postgres.log 2>&1 9<&-
    heed_signals

    # The owner makes the tables, and with them the roles that the other two become members of.
    make_role owner "CREATEROLE"
    as_superuser postgres <<<"CREATE DATABASE registry OWNER owner TEMPLATE template0"
    write_config
    AGENT_GATEWAY_MIGRATE_DATABASE_URL=$(<secrets/owner.url) AGENT_GATEWAY_DATABASE_URL=unused \
        "$programs/agent-gateway-authz" migrate --config config.toml >>logs/postgres.log
    as_superuser postgres <<<"ALTER ROLE owner NOCREATEROLE"
    make_role service "IN ROLE agent_gateway_reader"
    make_role admin "IN ROLE agent_gateway_writer"
}

# make_role NAME OPTIONS: a login role, and secrets/NAME.url for it.
make_role() {
    local password
    password=$(secret)
    # A statement that fails would be logged, with the password in it.
    as_superuser postgres <<<"SET log_min_error_statement = panic;
        CREATE ROLE $1 LOGIN PASSWORD '$password' $2"
    echo "postgres://$1:$password@127.0.0.1:$postgres_port/registry" >"secrets/$1.url"
}

as_superuser() {
    PGPASSWORD=$(<secrets/postgres.password) psql -X -q -v ON_ERROR_STOP=1 \
        -h 127.0.0.1 -p "$postgres_port" -U postgres -d "$1" >>logs/postgres.log 2>&1
}

write_config() {
    cat >hosts <<END
127.0.0.2 docstore
127.0.0.3 messaging
127.0.0.4 echo
127.0.0.5 todos
END
    write_rules
    cat >config.toml <<END
[server]
grpc_addr = "127.0.0.1:$grpc_port"

[admin]
grpc_addr = "127.0.0.1:$admin_grpc_port"
http_addr = "127.0.0.1:$admin_http_port"

[tunnel]
gateway_listeners = ["127.0.0.1:$gateway_port", "127.0.0.1:$envoy_admin_port"]

# Loopback addresses are refused, but for these destinations, each for its own one.
[[tunnel.private]]
destination = "$docstore"
cidrs = ["127.0.0.2/32"]

[[tunnel.private]]
destination = "$messaging"
cidrs = ["127.0.0.3/32"]

[relay]
tools_file = $(quoted "$demo/rules/tools.yaml")
egress_file = $(quoted "$demo/rules/egress.yaml")
agents_file = $(quoted "$demo/rules/agents.yaml")
contracts_dir = $(quoted "$demo/rules/contracts")
policy_dir = $(quoted "$demo/rules/policy")

[audit]
path = $(quoted "$demo/logs/audit.jsonl")
replica = "demo"

[dns]
hosts_file = $(quoted "$demo/hosts")

[policy]
database_url_env = "AGENT_GATEWAY_DATABASE_URL"
END
}

quoted() { jq -n --arg text "$1" '$text'; }

# Which tools may be called, where they are, and with which key the agent proves its calls: the
# project's own contracts and policy, and two tools.
write_rules() {
    mkdir rules
    cp -r "$root/contracts" "$root/policy" rules/
    cat >rules/tools.yaml <<END
tools:
- {name: echo, url: "http://$echo_tool/echo", private: [127.0.0.4/32]}
- {name: todos, url: "http://$todos_tool/call", contract: todos.v1, private: [127.0.0.5/32]}
END
    cat >rules/egress.yaml <<END
default: deny
allow:
- {name: echo, url: "http://$echo_tool/echo"}
- {name: todos, url: "http://$todos_tool/call"}
END
    (umask 077 && openssl genpkey -algorithm ed25519 -out secrets/agent-alpha-poca.pem)
    cat >rules/agents.yaml <<END
agents:
  agent-alpha:
    ed25519_pubkey_b64: "$(openssl pkey -in secrets/agent-alpha-poca.pem -pubout -outform DER | base64 -w 0)"
END
}

start_services() {
    local name address=2
    for name in docstore messaging; do
        start "$name" "$programs/agent-gateway-mock-service" --name "$name" \
            --listen "127.0.0.$address:$service_port" \
            --cert certs/mock-services.pem --key certs/mock-services-key.pem
        until_true "$name to listen" listens "127.0.0.$address" "$service_port"
        address=$((address + 1))
    done
    for name in echo todos; do
        start "$name" "$programs/agent-gateway-mock-tool" --name "$name" \
            --listen "127.0.0.$address:$tool_port"
        until_true "$name to listen" listens "127.0.0.$address" "$tool_port"
        address=$((address + 1))
    done
}

start_authz() {
    AGENT_GATEWAY_DATABASE_URL=$(<secrets/service.url) \
        start authz "$programs/agent-gateway-authz" serve --config config.toml
    until_true "the authorization service to be ready" answers "http://127.0.0.1:$admin_http_port/readyz"
}

# The project's own envoy.yaml; its relative paths (certs/, logs/) are those of this folder.
start_envoy() {
    local substitutions=() pair from
    for pair in "8443:$gateway_port" "9901:$envoy_admin_port" "50051:$grpc_port"; do
        from="{address: 127.0.0.1, port_value: ${pair%:*}}"
        [ "$(grep -cF "$from" "$root/envoy/envoy.yaml")" = 1 ] ||
            fail "envoy/envoy.yaml should hold \"$from\" once"
        # `t`: a port that was set is not taken for the next one's default.
        substitutions+=(-e "s/$from/{address: 127.0.0.1, port_value: ${pair#*:}}/;t")
    done
    sed "${substitutions[@]}" "$root/envoy/envoy.yaml" >envoy.yaml
    start envoy "$root/.tools/bin/envoy" --disable-hot-restart --concurrency 2 \
        --log-level info --file-flush-interval-msec 1000 --config-path envoy.yaml
    until_true "Envoy to be ready" answers "http://127.0.0.1:$envoy_admin_port/ready"
    until_true "Envoy to listen" listens 127.0.0.1 "$gateway_port"
}

# The service is told the root's public key and the registry's id: it takes neither from the
# database, and so nobody who writes that allows anything.
start_root() {
    start_tpm swtpm-root tpm/root "$root_swtpm_port"
    log=registry
    root_key=(--root-tcti "swtpm:host=127.0.0.1,port=$root_swtpm_port" --root-handle 0x81010020)
    trust_root=$demo/root.pub
    "$programs/agent-gateway-registry" root init "${root_key[@]}" --public "$trust_root" \
        >>logs/registry.log 2>&1
    registry_id=$(AGENT_GATEWAY_DATABASE_URL=$(<secrets/admin.url) \
        "$programs/agent-gateway-registry" root show --json 2>>logs/registry.log | jq -er .registry_id)
    # To [policy], which stands last.
    cat >>config.toml <<END
trust_roots = [$(quoted "$trust_root")]
registry_id = "$registry_id"
END
}

registry() {
    log=registry
    AGENT_GATEWAY_DATABASE_URL=$(<secrets/admin.url) \
        AGENT_GATEWAY_TPM_USER_PIN=$(<secrets/principal.pin) \
        AGENT_GATEWAY_TPM_SO_PIN=$(<secrets/principal-owner.pin) \
        AGENT_GATEWAY_TRUST_ROOTS=$trust_root AGENT_GATEWAY_REGISTRY_ID=$registry_id \
        "$programs/agent-gateway-registry" "$@" >>logs/registry.log 2>&1
}

# Its TPM makes keys for those alone who know the owner's PIN, and the key has a PIN of its own.
enrol_principal() {
    start_tpm swtpm-principal tpm/principal "$principal_swtpm_port"
    principal_tcti=swtpm:host=127.0.0.1,port=$principal_swtpm_port
    pin "$user_pin" >secrets/principal.pin
    pin "$owner_pin" >secrets/principal-owner.pin
    tpm2_changeauth -T "$principal_tcti" -c owner "file:secrets/principal-owner.pin"
    registry register-key org-alice --tcti "$principal_tcti" "${root_key[@]}"
    registry grant-scope org-alice "$docstore" "$messaging" api.anthropic.com "$echo_tool" \
        "$todos_tool" --valid 60d "${root_key[@]}"
}

# grant DESTINATION: org-alice signs it for agent-alpha's key.
grant() {
    registry grant --key org-alice --tcti "$principal_tcti" --identity agent-alpha \
        --spki "$agents/agent-alpha/client/spki.hex" --destination "$1" --valid 30d
}

# For demo-agent.sh.
write_settings() {
    local services="docstore messaging" variable
    for variable in programs gateway_port principal_tcti services service_port trust_root \
        registry_id; do
        printf '%s=%q\n' "$variable" "${!variable}"
    done >settings
}

# make_agent NAME SWTPM_PORT PROXY_PORT: agent-alpha, or one that calls itself so.
make_agent() {
    log=$1
    AGENT_STATE=$agents AGENT_GATEWAY_DEMO_DIR=$demo \
        AGENT_GATEWAY_DEMO_SWTPM_PORT=$2 AGENT_GATEWAY_DEMO_PROXY_PORT=$3 \
        "$root/demo/demo-agent.sh" create --identity agent-alpha --name "$1" \
        >"logs/$1.log" 2>&1 9<&-
}

start_agent() { make_agent agent-alpha "$swtpm_port" "$proxy_port"; }

start_stranger() { make_agent stranger "$stranger_swtpm_port" "$stranger_proxy_port"; }

# What `. .demo/env` gives a shell; secrets stay in their files.
write_environment() {
    cat >./env <<END
# For a shell that plays with the demo: ". $(printf %q "$demo")/env"
export PATH=$(printf %q "$programs:$root/.tools/bin"):\$PATH
export AGENT_GATEWAY_STATE=$(printf %q "$agents/agent-alpha/client")
export AGENT_STATE=$(printf %q "$agents")
export AGENT_GATEWAY_DEMO_DIR=$(printf %q "$demo")
export AGENT_GATEWAY_TCTI=$principal_tcti
AGENT_GATEWAY_DATABASE_URL=\$(cat $(printf %q "$demo/secrets/admin.url"))
AGENT_GATEWAY_TPM_USER_PIN=\$(cat $(printf %q "$demo/secrets/principal.pin"))
export AGENT_GATEWAY_TRUST_ROOTS=$(printf %q "$trust_root") AGENT_GATEWAY_REGISTRY_ID=$registry_id
export AGENT_GATEWAY_DATABASE_URL AGENT_GATEWAY_TPM_USER_PIN
export AGENT_GATEWAY_GATEWAY=127.0.0.1:$gateway_port
export AGENT_GATEWAY_CA=$(printf %q "$demo/certs/server-ca.pem")
DOCSTORE=$docstore MESSAGING=$messaging
ROOT_KEY=(${root_key[*]})
DEMO=$(printf %q "$demo")
END
}

# What went wrong: the end of the log of the current step.
explain() {
    [ -n "$made" ] || return 0
    local file=logs/$log.log
    if [ "$log" = postgres ] && [ -s run/postgres.dir ] && [ -s "$(<run/postgres.dir)/log" ]; then
        cat "$(<run/postgres.dir)/log" >>"$file"
    fi
    [ -s "$file" ] || return 0
    echo "the end of $demo/$file:" >&2
    tail -n 15 "$file" | sed 's/^/    /' >&2
}

process_files() {
    find "$demo/run" "$agents"/*/run -maxdepth 1 -name '*.pid' 2>/dev/null | sort
}

stop_processes() {
    local files
    mapfile -t files < <(process_files)
    stop_all "${files[@]}"
    [ ! -s "$demo/run/postgres.dir" ] ||
        "$root/testbed/postgres-cluster" stop "$(<"$demo/run/postgres.dir")" 9<&- ||
        say "Postgres did not stop"
}

status() {
    [ -e "$demo/.agent-gateway-demo" ] || fail "no demo is set up in $demo" "make demo" 1
    local file name state stopped=0
    while read -r file; do
        state=running
        running "$file" || state=stopped stopped=1
        name=${file#"$(dirname "$agents")/"} name=${name#"$demo/"} name=${name%.pid}
        printf '%-8s %s\n' "$state" "${name/run\//}"
    done < <(process_files)
    echo
    "$root/demo/demo-agent.sh" list
    return "$stopped"
}

# Stops what an earlier run started, and removes what it made.
empty_folder() {
    [ -n "$(ls -A -- "$demo")" ] || return 0
    [ -e "$demo/.agent-gateway-demo" ] ||
        fail "$demo holds other things than a demo" "set AGENT_GATEWAY_DEMO_DIR to a new folder" 64
    stop_processes
    local data=
    [ ! -s "$demo/run/postgres.dir" ] || data=$(<"$demo/run/postgres.dir")
    # Agents that live elsewhere.
    local agent
    for agent in "$agents"/*/; do
        [ ! -e "$agent/.agent-gateway-demo-agent" ] || rm -rf -- "$agent"
    done
    case $data in
    /var/tmp/agent-gateway-demo.??????) rm -rf -- "$data" ;;
    esac
    # The marker goes last: what is left of an interrupted removal can be removed again.
    find "$demo" -mindepth 1 ! -path "$demo/.agent-gateway-demo" -delete
    rm -- "$demo/.agent-gateway-demo"
}

# Nothing to do is a success.
take_down() {
    [ -e "$demo" ] || return 0
    [ -n "$made" ] || lock_folder
    empty_folder
    cd /
    rmdir -- "$demo"
}
