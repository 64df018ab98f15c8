# Made by docs/make_manual.py.
# shellcheck shell=bash disable=SC2207

_criu_relay_words() { COMPREPLY+=($(compgen -W "$1" -- "$current")); }
_criu_relay_names() { _criu_relay_words "$(criu-relay status --json 2>/dev/null | sed -n 's/^      "name": "\(.*\)",\{0,1\}$/\1/p')"; }
_criu_relay_files() { compopt -o filenames; COMPREPLY+=($(compgen "${1:--f}" -- "$current")); }

# Either the flags, or a status that says: complete an argument.
_criu_relay_or_flags() {
    [[ $current == -* ]] || return 0
    _criu_relay_words "$1"
    return 1
}

_criu_relay() {
    COMPREPLY=()
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local command= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in status|attach|detach|wait|commit|images|discard|export|import|rate|make-certs) command=${COMP_WORDS[i]}; break ;; esac
    done
    case "$command:$previous" in
    *:--control) _criu_relay_files; return ;;
    attach:--dialect) _criu_relay_words "stream images"; return ;;
    wait:--timeout|commit:--timeout|discard:--offset|discard:--length) :; return ;;
    esac
    case "$command" in
    "") _criu_relay_words "status attach detach wait commit images discard export import rate make-certs -h --help --control --version" ;;
    status) _criu_relay_or_flags "-h --help --control --json --watch" && { :; } ;;
    attach) _criu_relay_or_flags "-h --help --control --dialect --copy" && { _criu_relay_files -d ; _criu_relay_names; } ;;
    detach) _criu_relay_or_flags "-h --help --control" && { _criu_relay_files -d; } ;;
    wait) _criu_relay_or_flags "-h --help --control --timeout --next" && { _criu_relay_names; } ;;
    commit) _criu_relay_or_flags "-h --help --control --timeout --force" && { _criu_relay_names; } ;;
    images) _criu_relay_or_flags "-h --help --control --json" && { _criu_relay_names; } ;;
    discard) _criu_relay_or_flags "-h --help --control --offset --length" && { _criu_relay_names ; :; } ;;
    export) _criu_relay_or_flags "-h --help --control" && { _criu_relay_names ; _criu_relay_files -d; } ;;
    import) _criu_relay_or_flags "-h --help --control" && { _criu_relay_files -d ; _criu_relay_names; } ;;
    rate) _criu_relay_or_flags "-h --help --control" && { :; } ;;
    make-certs) _criu_relay_or_flags "-h --help --control" && { _criu_relay_files -d ; :; } ;;
    esac
}
complete -F _criu_relay criu-relay
complete -W '' criu-relay-action

_criu_relay_twistd() {
    COMPREPLY=()
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        criu-relay-proxy)
            case "$previous" in
            --allow-uid|--control|--criu-dev-link|--dedup|--idle|--link-fd|--link-timeout|--link|--manhole|--metrics|--rate|--tls-peer|--window) :; return ;;
            --config|--manhole-keys|--tls-ca|--tls-cert|--tls-key) _criu_relay_files; return ;;
            --images|--state|--stream) _criu_relay_files -d; return ;;
            esac
            _criu_relay_words "--allow-uid --config --control --criu-dev-link --dedup --help --idle --images --insecure --link-fd --link-timeout --link --manhole-keys --manhole --metrics --rate --state --stream --tls-ca --tls-cert --tls-key --tls-peer --version --window"
            return ;;
        criu-relay-cache)
            case "$previous" in
            --allow-uid|--control|--criu-dev-link|--dedup|--idle|--link-fd|--link-timeout|--link|--manhole|--memory|--metrics|--tls-peer|--ttl|--warm) :; return ;;
            --config|--manhole-keys|--tls-ca|--tls-cert|--tls-key) _criu_relay_files; return ;;
            --images|--spill|--state|--stream) _criu_relay_files -d; return ;;
            esac
            _criu_relay_words "--allow-uid --config --control --criu-dev-link --dedup --help --idle --images --insecure --link-fd --link-timeout --link --manhole-keys --manhole --memory --metrics --release --retain --spill --state --stream --tls-ca --tls-cert --tls-key --tls-peer --ttl --version --warm"
            return ;;
        esac
    done
    _criu_relay_words "criu-relay-proxy criu-relay-cache"
}
complete -o default -F _criu_relay_twistd twistd
