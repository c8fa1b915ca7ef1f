# Free TCP ports, for the scripts that source this.
# shellcheck shell=bash

# port_in_use PORT: whether any socket of this machine has it. Sockets that only wait out an old
# connection (TIME_WAIT, 06) don't count.
port_in_use() {
    { cat /proc/net/tcp /proc/net/tcp6 2>/dev/null || true; } |
        awk -v port="$(printf ':%04X' "$1")" '
            substr($2, length($2) - 4) == port && $4 != "06" { found = 1 }
            END { exit !found }'
}

# free_port [COUNT]: prints a port that is free, as are the next COUNT - 1. Below the range that
# the kernel takes for outgoing connections, and apart from that of the testbed crate.
free_port() {
    local port offset
    for _ in {1..200}; do
        port=$((10000 + RANDOM % 4900))
        for ((offset = 0; offset < ${1:-1}; offset++)); do
            ! port_in_use $((port + offset)) || continue 2
        done
        echo "$port"
        return
    done
    echo "error: no free port on this machine" >&2
    return 69
}
