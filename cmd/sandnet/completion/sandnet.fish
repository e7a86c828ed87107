# fish completion for sandnet. The program itself knows what may follow: it is
# given the words up to the cursor, prints a line for each offer, and last what
# else to do.
function __sandnet_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l offers ($words[1] __complete -- $words[2..-1] "$current" 2>/dev/null)
    test (count $offers) -gt 0; or return
    set -l head ''
    string match -qr -- '^--[^=]*=' "$current"; and set head (string match -r -- '^--[^=]*=' "$current")
    switch $offers[-1]
        case ':command*'
            set -l skip (math (string replace ':command ' '' -- $offers[-1]) + 2)
            set -l line (string escape -- $words[$skip..-1]) "$current"
            complete -C (string join ' ' -- $line)
        case ':files'
            printf '%s\n' $head(__fish_complete_path (string replace -r -- '^--[^=]*=' '' "$current"))
        case ':dirs'
            printf '%s\n' $head(__fish_complete_directories (string replace -r -- '^--[^=]*=' '' "$current") '')
        case '*'
            test (count $offers) -gt 1; and printf '%s\n' $offers[1..-2]
    end
end
complete -c sandnet -f -a '(__sandnet_complete)'
