#!/usr/bin/env bash
# `-incoming fd:N` is supposed to take any readable descriptor, and libxl passes QEMU a regular file in it
# for each HVM guest that it restores. QEMU 11 refuses that, even if the file holds a state that it has
# saved itself: it accepts pipes and sockets, and the same file by name, for which `file:/proc/self/fd/N`
# will do. QEMU 7.2 accepts the file.
# Needs root and mmdebstrap; exits with 0 if it is still so.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# SUITE VERSION: unpack Debian's QEMU into its own directory.
unpack() {
    mmdebstrap --quiet --variant=extract --aptopt='Acquire::Check-Valid-Until "false"' \
        --include="base-files,coreutils,dash,qemu-system-x86=$2" "$1" "$work/$1"
    mkdir -p "$work/$1/proc"
}

# SUITE ARGUMENT...: run that QEMU with a small, stopped machine; stdin has its monitor's commands.
qemu() {
    timeout 120 unshare --mount --pid --fork --kill-child \
        sh -c 'mount -t proc proc "$0/proc" && exec chroot "$0" qemu-system-x86_64 "$@"' "$work/$1" \
        -machine pc,accel=tcg -m 16 -nodefaults -display none -S -monitor stdio "${@:2}" 2>&1
}

# Ask for the machine's status repeatedly, then quit: loading a state takes a moment.
ask() {
    for _ in {1..40}; do
        echo 'info status'
        sleep 0.1
    done
    echo quit
}

# WHAT WANTED SUITE URI: load the state in descriptor 9, and print what QEMU says.
try() {
    local said
    said=$( (trap '' PIPE; ask 2>/dev/null) | qemu "$3" -incoming "$4" || true)
    said=$(tr -d '\r' <<<"$said" | grep -E '^VM status|-incoming' | tail -n 1)
    printf '    %-40s %s\n' "$1" "$said"
    [[ $said == *"$2"* ]] || { echo "wanted: $2"; exit 1; }
}

unpack bookworm '1:7.2+dfsg-7+deb12u18+b3'
unpack sid '1:11.1.3+ds-1'
taken='VM status: paused (prelaunch)' # before, it is (inmigrate)
for suite in bookworm sid; do
    chroot "$work/$suite" qemu-system-x86_64 --version | head -n 1
    printf 'migrate exec:cat>/state\nquit\n' | qemu "$suite" >/dev/null
    state=$work/$suite/state
    [ "$suite" = sid ] && wanted='not supported' || wanted=$taken
    try 'fd:9, a regular file' "$wanted" "$suite" fd:9 9<"$state"
    try 'fd:9, the same through a pipe' "$taken" "$suite" fd:9 9< <(cat "$state")
done
try 'file:/proc/self/fd/9, the same file' "$taken" sid file:/proc/self/fd/9 9<"$state"
