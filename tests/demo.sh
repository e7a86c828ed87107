#!/bin/bash
# What sandnet does, shown at work: `make run`. Two machines are made of network
# namespaces, "node" with sandnet on it and "lan", a neighbour on its network.
# Everything runs in namespaces of its own that end with this script, so the
# machine's own network is not touched; should a step not be as expected, the
# script says so and exits 1.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ]; then
	echo "make run makes network namespaces: run it as root (sudo make run)" >&2
	exit 1
fi
PATH=$PATH:/usr/sbin:/sbin
if [ "${1:-}" != inside ]; then
	# The world of the demonstration: its own mounts, processes and network.
	tmp=$(mktemp -d /tmp/sandnet-demo.XXXXXX)
	trap 'rm -rf "$tmp"' EXIT
	DEMO_TMP=$tmp unshare --mount --net --pid --fork --kill-child --mount-proc "$0" inside
	exit
fi

bin=$PWD/bin
export SANDNET_ROOT=$DEMO_TMP/root
sandnet=$bin/sandnet http=$bin/labhttp

bold='' dim='' green='' red='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
	bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
fi
heading() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
note() { printf '%s%s%s\n' "$dim" "$*" "$plain"; }
good() { printf '   %sok%s  %s\n' "$green" "$plain" "$*"; }
fail() {
	printf '   %sFAILED%s  %s\n' "$red" "$plain" "$*" >&2
	exit 1
}

# Not `ip netns exec`: that gives each command mounts of its own, and the
# namespaces that sandnet pins would vanish with them.
node() { nsenter --net=/run/netns/node -- "$@"; }
lan() { nsenter --net=/run/netns/lan -- "$@"; }
# show NAME COMMAND… prints the command as a user would type it, and runs it there.
show() {
	local where=$1
	shift
	printf '%s$ %s%s\n' "$where" "${*//$bin\//}" "$plain"
	"$where" "$@"
}
# expect TEXT COMMAND… runs a command and wants TEXT in its output.
expect() {
	local want=$1 out
	shift
	printf '%s$ %s\n' "$1" "${*:2}" | sed "s|$bin/||g"
	out=$("$@" 2>&1) || fail "exit $?: $out"
	printf '%s\n' "$out"
	case $out in *"$want"*) good "$want" ;; *) fail "expected: $want" ;; esac
}
# refuse COMMAND… runs a command that must not succeed.
refuse() {
	printf '%s$ %s\n' "$1" "${*:2}" | sed "s|$bin/||g"
	if out=$("$@" 2>&1); then fail "it succeeded: $out"; fi
	good "closed"
}
# snapshot is what sandnet could have changed on the node.
snapshot() {
	node ip -o link | sed 's/^[0-9]*: //; s/ state.*//; s/@if[0-9]*//'
	node ip -4 -o addr | sed 's/^[0-9]*: //'
	node ip route
	node nft list ruleset
	node cat /proc/sys/net/ipv4/ip_forward
	ls "$SANDNET_ROOT/run/netns" 2>/dev/null || true
}

finish() {
	local status=$?
	trap - EXIT
	# Whatever the demonstration leaves on a failure, sandnet removes; the rest
	# goes with the namespaces.
	node "$sandnet" rm -f web db client >/dev/null 2>&1 || true
	node "$sandnet" network rm backend bridge >/dev/null 2>&1 || true
	node "$sandnet" gc >/dev/null 2>&1 || true
	umount -q -R -l "$DEMO_TMP" 2>/dev/null || true
	if [ $status = 0 ]; then
		printf '\n%sAll of it worked.%s\n' "$green" "$plain"
	fi
	exit $status
}

# Names of namespaces are this script's alone.
mount -t tmpfs tmpfs "$DEMO_TMP"
mkdir -p /run/netns
mount -t tmpfs tmpfs /run/netns

heading "Two machines: node (192.168.205.3), and its neighbour lan (192.168.205.9)"
ip netns add node
ip netns add lan
trap finish EXIT
ip -n node link add eth0 type veth peer name eth0 netns lan
for m in node:3 lan:9; do
	ip -n "${m%:*}" link set lo up
	ip -n "${m%:*}" addr add "192.168.205.${m#*:}/24" dev eth0
	ip -n "${m%:*}" link set eth0 up
done
node sh -c 'echo 0 >/proc/sys/net/ipv4/ip_forward'
good "$("$sandnet" version 2>&1 | head -1)"

before=$(snapshot)

heading "What will be done: sandnet plan"
show node "$sandnet" plan --name web -p 8080:80

heading "A sandbox with a web server, published on port 8080"
show node "$sandnet" create --name web -p 8080:80
show node "$sandnet" ps
note "the server is an ordinary process, started in the sandbox"
nsenter --net=/run/netns/node -- "$sandnet" exec web -- "$http" serve web 0.0.0.0:80 >"$DEMO_TMP/web.log" &
server=$!
for _ in $(seq 100); do
	! grep -q listens "$DEMO_TMP/web.log" || break
	sleep 0.05
done
address=$(node "$sandnet" inspect web | sed -n 's/.*"addresses": *\[ *"\([0-9.]*\).*/\1/p')
[ -n "$address" ] || address=$(node "$sandnet" exec web -- ip -4 -o addr show eth0 | sed 's/.*inet \([0-9.]*\).*/\1/')
good "the server listens inside the sandbox, on $address"

heading "Reached from another sandbox"
expect "this is web" node "$sandnet" run --name client -- "$http" get "$address:80"

heading "Reached from the host, on 127.0.0.1"
expect "this is web" node "$http" get 127.0.0.1:8080

heading "Reached from the neighbour, which the server sees with its real address"
expect "Hello 192.168.205.9, this is web" lan "$http" get 192.168.205.3:8080

heading "Not reached: the sandbox's own address, from the neighbour"
lan ip route add "$address" via 192.168.205.3
refuse lan timeout 1 "$http" get "$address:80"

heading "The published port belongs to nobody else, and no process holds it"
refuse node timeout 1 "$http" serve thief 0.0.0.0:8080
expect "0.0.0.0:8080" node "$sandnet" port web

heading "A network of one's own: names resolve, and it is closed to other networks"
show node "$sandnet" network create backend
show node "$sandnet" create --name db --net backend
expect "db" node "$sandnet" run --net backend -- getent hosts db
refuse node timeout 1 "$sandnet" run --net backend -- "$http" get "$address:80"

heading "Everything gone again"
kill "$server"
wait "$server" 2>/dev/null || true
show node "$sandnet" rm web db
note "the default network would stay for its next use; here it goes as well"
show node "$sandnet" network rm backend bridge
show node "$sandnet" ps
for _ in $(seq 50); do
	after=$(snapshot)
	[ "$before" != "$after" ] || break
	sleep 0.1 # the kernel frees a namespace, and the links in it, a moment later
done
if ! changes=$(diff <(echo "$before") <(echo "$after")); then
	printf '%s\n' "$changes"
	fail "the node is not as it was"
fi
good "links, addresses, routes, rules, settings and namespaces are as before"
