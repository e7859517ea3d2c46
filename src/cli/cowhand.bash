_cowhand() {
    # To cowhand VM@SNAPSHOT is one word, to bash it is three.
    local line=${COMP_LINE:0:COMP_POINT} words
    read -ra words <<< "$line"
    [[ $line != *[[:space:]] ]] || words+=("")
    local before=${words[-1]%"$2"}
    mapfile -d $'\013' -t COMPREPLY < <(
        _CLAP_IFS=$'\013' _CLAP_COMPLETE_INDEX=$(( ${#words[@]} - 1 )) _CLAP_COMPLETE_COMP_TYPE=$COMP_TYPE \
        _CLAP_COMPLETE_SPACE=true COWHAND_COMPLETE=bash cowhand -- "${words[@]}" 2>/dev/null
    )
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
    [[ ! ${COMPREPLY-} =~ [=/:@]$ ]] || compopt -o nospace
}
complete -o bashdefault -o default -F _cowhand cowhand
