#compdef sandnet
# zsh completion for sandnet. The program itself knows what may follow: it is
# given the words up to the cursor, prints a line for each offer, and last what
# else to do.
_sandnet() {
	local -a offers described
	local offer then
	offers=("${(@f)$(${~words[1]} __complete -- "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
	then=$offers[-1]
	for offer in "${(@)offers[1,-2]}"; do
		described+=("${${offer%%$'\t'*}//:/\\:}:${offer#*$'\t'}")
	done
	case $then in
	(:command*)
		local skip=$((${then#:command } + 1))
		words=("${(@)words[skip+1,-1]}")
		((CURRENT -= skip))
		_normal
		;;
	(:files) compset -P '--*='; _files ;;
	(:dirs) compset -P '--*='; _files -/ ;;
	(:nospace) _describe sandnet described -S '' ;;
	(*) ((${#described})) && _describe sandnet described ;;
	esac
}
if [[ $funcstack[1] == _sandnet ]]; then
	_sandnet "$@"
else
	compdef _sandnet sandnet
fi
