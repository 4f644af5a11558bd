# Completion of `fastcomposer <subcommand>`: subcommands, groups with their choices, and keys.
#   source scripts/completion.bash          in zsh after: autoload -U +X bashcompinit && bashcompinit
# Hydra completes what follows a subcommand; its own `-sc install=bash` does not support subcommands.

_fastcomposer() {
    local line=${COMP_LINE:0:COMP_POINT} found=""
    local word=${line##* }
    local called='^([^ ]*fastcomposer) +([a-z]+) +(.*)$'
    local naming='^[^ ]*fastcomposer +[a-z]*$'
    COMPREPLY=()
    if [[ $line =~ $called ]]; then
        found=$(COMP_LINE="python app ${BASH_REMATCH[3]}" "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" \
            -sc query=bash 2>/dev/null)
    elif [[ $line =~ $naming ]]; then
        for file in "$(dirname "${BASH_SOURCE[0]}")"/../conf/*.yaml; do
            found+=" $(basename "$file" .yaml)"
        done
    fi
    # shellcheck disable=SC2207
    [[ -z $found ]] || COMPREPLY=($(compgen -W "$found" -- "$word"))
}

COMP_WORDBREAKS=${COMP_WORDBREAKS//=/}
complete -o nospace -o bashdefault -o default -F _fastcomposer fastcomposer .venv/bin/fastcomposer
