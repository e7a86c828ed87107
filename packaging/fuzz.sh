#!/bin/bash
# fuzz.sh [TIME [PATTERN]] runs every fuzz target whose name matches PATTERN for
# TIME (10s), as many at once as there are processors. Each starts from its
# corpus: what the code adds, testdata/fuzz in git, and what earlier runs found,
# in Go's build cache. An input that fails is left in testdata/fuzz, for the fix.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-10s} pattern=${2:-.}

mapfile -t targets < <(grep -ro --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . |
	sed 's|^\(.*\)/[^/]*:func |\1 |' | grep -- " .*$pattern" | sort)
[ ${#targets[@]} -gt 0 ] || { echo "fuzz.sh: no fuzz target matches $pattern" >&2; exit 1; }

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
fuzz() {
	local dir=$1 name=$2 log=$3/$2.log
	# With one worker each, targets do not slow each other down; and no target
	# spends its time on making every input as small as it can be.
	if ! ${GO:-go} test -run '^$' -fuzz "^$name\$" -fuzztime "$4" -fuzzminimizetime 300x -parallel 1 "$dir" >"$log" 2>&1; then
		# Before Go 1.27 it may count as an error that the time is up while the
		# worker is busy (go.dev/issue/75804); without a failing input it is none.
		if grep -q 'Failing input' "$log" || ! grep -q 'context deadline exceeded' "$log"; then
			printf 'FAIL %s %s\n' "$dir" "$name"
			cat "$log"
			return 1
		fi
	fi
	printf 'ok   %-20s %-22s %s\n' "$dir" "$name" "$(grep -o 'execs: [0-9]*' "$log" | tail -1)"
}
export -f fuzz
export GO
printf '%s\n' "${targets[@]}" |
	xargs -P "$(nproc)" -L 1 bash -c 'fuzz "$2" "$3" "$0" "$1"' "$logs" "$time"
