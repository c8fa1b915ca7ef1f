# Background processes of the demo and its agents, each with its id and its log in the folders run/
# and logs/ of the current folder. Sourced by demo.sh and demo-agent.sh.
# shellcheck shell=bash disable=SC2034

say() { echo "demo: $1" >&2; }
# Ends the script; the EXIT trap adds what it was doing, and the log.
fail() {
    echo "error: $1" >&2
    [ $# -lt 2 ] || echo "hint: $2" >&2
    exit "${3:-69}"
}

interrupted=''
heed_signals() {
    trap 'interrupted=yes; exit 130' INT TERM HUP
    [ -z "$interrupted" ] || exit 130
}

# Until heed_signals, so that nothing is started without being written down.
hold_signals() { trap 'interrupted=yes' INT TERM HUP; }

# start NAME COMMAND…: in the background, in a session of its own, so that this terminal's Ctrl-C
# does not reach it, and orphaned on purpose, because Envoy ends with its parent.
start() {
    log=$1
    shift
    hold_signals
    rm -f "run/$log.pid"
    # shellcheck disable=SC2016
    setsid -f bash -c 'echo "$$ $(birth $$)" >"$0" && exec "$@"' "run/$log.pid" "$@" \
        </dev/null >"logs/$log.log" 2>&1 9<&-
    for _ in {1..500}; do
        [ ! -s "run/$log.pid" ] || break
        sleep 0.01 || true
    done
    heed_signals
}

# birth PID: when it started, in clock ticks since boot, which with its id tells it from any other
# process; nothing if it has ended.
birth() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    # "PID (NAME) STATE …"; the start is field 22, and NAME may hold anything.
    read -ra stat <<<"${stat##*) }"
    [ "${stat[0]}" = Z ] || echo "${stat[19]}"
}
export -f birth

# running FILE: whether the process that was written down there still runs.
running() {
    local pid born
    read -r pid born 2>/dev/null <"$1" || return 1
    [ -n "$born" ] && [ "$(birth "$pid")" = "$born" ]
}

# until_true WHAT CONDITION…: waits for it, at most 30 s and while the process of this step runs.
until_true() {
    local what=$1 deadline=$((SECONDS + 30))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "waited 30 s in vain for $what"
        [ ! -e "run/$log.pid" ] || running "run/$log.pid" || fail "$log has ended by itself"
        sleep 0.05
    done
}

listens() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }
answers() { curl -q -fsS --noproxy '*' --max-time 2 -o /dev/null "$1" 2>/dev/null; }

# start_tpm LOG STATE PORT: a simulated TPM. Its TCTI takes the control port to be the next one.
start_tpm() {
    mkdir -p "$2"
    start "$1" swtpm socket --tpm2 --flags not-need-init,startup-clear \
        --tpmstate "dir=$2,mode=0600" \
        --server "type=tcp,bindaddr=127.0.0.1,port=$3" \
        --ctrl "type=tcp,bindaddr=127.0.0.1,port=$(($3 + 1))"
    until_true "the TPM to listen" listens 127.0.0.1 "$3"
}

# stop_all FILE…: ends the processes that were written down there.
stop_all() {
    local file pid deadline=$((SECONDS + 10))
    for file in "$@"; do
        running "$file" || continue
        read -r pid _ <"$file"
        kill "$pid" 2>/dev/null || true
    done
    for file in "$@"; do
        while running "$file"; do
            if [ "$SECONDS" -ge "$deadline" ]; then
                say "$(basename "$file" .pid) does not stop; killing it"
                read -r pid _ <"$file"
                kill -KILL "$pid" 2>/dev/null || true
                break
            fi
            sleep 0.05
        done
    done
}
