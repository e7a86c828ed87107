# bash completion for sandnet. The program itself knows what may follow: it is
# given the words up to the cursor, prints a line for each offer, and last what
# else to do.
_sandnet() {
	local rest=${COMP_LINE:0:COMP_POINT} words=() starts=() offers=() word head='' i
	COMPREPLY=()
	# bash also takes words apart at = and :, which are ordinary characters here.
	for ((i = 0; i <= COMP_CWORD; i++)); do
		if [[ $i == 0 || $rest == [[:space:]]* ]]; then
			rest=${rest#"${rest%%[![:space:]]*}"}
			words+=('') starts+=("$i")
		fi
		word=${rest:0:${#COMP_WORDS[i]}}
		words[-1]+=$word
		rest=${rest:${#word}}
	done
	local current=${words[-1]} breaks=${COMP_WORDBREAKS//[^=:]/}
	words=("${words[@]//[\\\"\']/}")
	mapfile -t offers < <("${words[0]/#\~/$HOME}" __complete -- "${words[@]:1}" 2>/dev/null)
	((${#offers[@]})) || return 0
	local then=${offers[-1]}
	unset 'offers[-1]'
	# What bash is completing begins after the last of its breaks.
	[[ $breaks && $current == *[$breaks]* ]] && head=${current%"${current##*[$breaks]}"}
	for word in "${offers[@]}"; do
		word=${word%%$'\t'*}
		COMPREPLY+=("${word#"$head"}")
	done
	case $then in
	:nospace) compopt -o nospace ;;
	:files) compopt -o default ;;
	:dirs) compopt -o dirnames -o nospace ;;
	:command*)
		i=$((${then#:command } + 1))
		if declare -F _command_offset >/dev/null; then
			_command_offset "${starts[i]}"
		elif ((i == ${#words[@]} - 1)); then
			mapfile -t COMPREPLY < <(compgen -c -- "$current")
		else
			compopt -o default
		fi
		;;
	esac
}
complete -F _sandnet sandnet
