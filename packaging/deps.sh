#!/bin/bash
# deps.sh TARGET… installs the Debian packages that the make targets named need,
# and only those that are missing. A machine that has them all is not touched:
# no package lists are fetched, no root is asked for.
set -euo pipefail

# Each entry is COMMAND:PACKAGE or /FILE:PACKAGE. sandnet itself needs none of
# these: the lab makes its test hosts with them and looks at what sandnet did.
run=(ip:iproute2 nft:nftables)
# The runtimes that are given networks.
runtimes=(runc:runc crun:crun podman:podman containerd:containerd busybox:busybox-static /usr/lib/cni/host-local:containernetworking-plugins)
# The shells whose completions are tested, and what checks manual pages.
shells=(bash:bash zsh:zsh fish:fish /usr/share/bash-completion/bash_completion:bash-completion mandoc:mandoc)
# What examples in help and docs use.
shown=(python3:python3 curl:curl jq:jq ss:iproute2 getent:libc-bin)
test=(ip:iproute2 nft:nftables iptables:iptables ipset:ipset ps:procps ping:iputils-ping "${runtimes[@]}" "${shells[@]}" "${shown[@]}")
# The bench measures beside the last two.
bench=(ip:iproute2 nft:nftables iperf3:iperf3 iptables:iptables crun:crun busybox:busybox-static
	/usr/lib/cni/bridge:containernetworking-plugins /usr/lib/podman/netavark:netavark)
vm=(ruby:ruby vagrant:vagrant)

# A plain user's PATH often lacks the directories where these programs live.
PATH=$PATH:/usr/sbin:/sbin

missing=()
for target in "$@"; do
	case $target in
	run | test | bench | vm) declare -n list=$target ;;
	*)
		echo "deps.sh: unknown target $target (run, test, bench, vm)" >&2
		exit 2
		;;
	esac
	for entry in "${list[@]}"; do
		package=${entry#*:}
		if ! command -v "${entry%%:*}" >/dev/null && [ ! -r "/${entry%%:*}" ] && [[ " ${missing[*]} " != *" $package "* ]]; then
			missing+=("$package")
		fi
	done
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "deps.sh: install these by hand, this is not Debian: ${missing[*]}" >&2
	exit 1
fi
as_root=()
if [ "$(id -u)" != 0 ]; then
	if ! command -v sudo >/dev/null; then
		echo "deps.sh: as root, run: apt-get install ${missing[*]}" >&2
		exit 1
	fi
	as_root=(sudo)
fi

echo "installing ${missing[*]}"
install() {
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
		-o Dpkg::Use-Pty=0 "${missing[@]}" </dev/null
}
# Package lists may be missing (an image without them) or too old to be
# fetched from; only then are they worth the time.
if ! log=$(install 2>&1); then
	"${as_root[@]}" apt-get update -qq </dev/null
	if ! log=$(install 2>&1); then
		printf '%s\n' "$log" >&2
		exit 1
	fi
fi
