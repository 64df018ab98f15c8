# Made by docs/make_manual.py.
function __criu_relay_names
    criu-relay status --json 2>/dev/null | sed -n 's/^      "name": "\(.*\)",\{0,1\}$/\1/p'
end

set -l commands status attach detach wait commit images discard export import rate make-certs
complete -c criu-relay -f
complete -c criu-relay-action -f
complete -c criu-relay -n "not __fish_seen_subcommand_from $commands" -s h -l help -d 'show this help message and exit'
complete -c criu-relay -n "not __fish_seen_subcommand_from $commands" -l control -d 'control socket of the daemon; default: the one that lives' -r -F
complete -c criu-relay -n "not __fish_seen_subcommand_from $commands" -l version -d 'show program\'s version number and exit'
complete -c criu-relay -n "not __fish_seen_subcommand_from $commands" -a status -d 'what the daemon does'
complete -c criu-relay -n "not __fish_seen_subcommand_from $commands" -a attach -d 'bind CRIU\'s socket in a directory'
complete -c criu-relay -n "not __fish_seen_subcommand_from $commands" -a detach -d 'remove CRIU\'s socket from a directory'
complete -c criu-relay -n "not __fish_seen_subcommand_from $commands" -a wait -d 'wait until a namespace is committed (0) or aborted (1)'
complete -c criu-relay -n "not __fish_seen_subcommand_from $commands" -a commit -d 'CRIU wrote everything: commit the namespace'
complete -c criu-relay -n "not __fish_seen_subcommand_from $commands" -a images -d 'list images'
complete -c criu-relay -n "not __fish_seen_subcommand_from $commands" -a discard -d 'throw away a namespace, an image, or a range of one'
complete -c criu-relay -n "not __fish_seen_subcommand_from $commands" -a export -d 'write a namespace as files that criu restore -D DIR takes'
complete -c criu-relay -n "not __fish_seen_subcommand_from $commands" -a import -d 'send a directory of images as a namespace'
complete -c criu-relay -n "not __fish_seen_subcommand_from $commands" -a rate -d 'limit, or say, how fast a proxy sends'
complete -c criu-relay -n "not __fish_seen_subcommand_from $commands" -a make-certs -d 'write a CA and certificates for TLS on the link'
complete -c criu-relay -n "__fish_seen_subcommand_from status" -s h -l help -d 'show this help message and exit'
complete -c criu-relay -n "__fish_seen_subcommand_from status" -l control -d 'control socket of the daemon' -r -F
complete -c criu-relay -n "__fish_seen_subcommand_from status" -l json -d 'as the control API gives it'
complete -c criu-relay -n "__fish_seen_subcommand_from status" -l watch -d 'once a second, until interrupted'
complete -c criu-relay -n "__fish_seen_subcommand_from attach" -s h -l help -d 'show this help message and exit'
complete -c criu-relay -n "__fish_seen_subcommand_from attach" -l control -d 'control socket of the daemon' -r -F
complete -c criu-relay -n "__fish_seen_subcommand_from attach" -l dialect -d 'of CRIU; default stream' -r -f -a 'stream images'
complete -c criu-relay -n "__fish_seen_subcommand_from attach" -l copy -d 'the dumped task shall go on (criu dump --leave-running)'
complete -c criu-relay -n "__fish_seen_subcommand_from attach" -f -a '(__fish_complete_directories)'
complete -c criu-relay -n "__fish_seen_subcommand_from attach" -f -a '(__criu_relay_names)'
complete -c criu-relay -n "__fish_seen_subcommand_from detach" -s h -l help -d 'show this help message and exit'
complete -c criu-relay -n "__fish_seen_subcommand_from detach" -l control -d 'control socket of the daemon' -r -F
complete -c criu-relay -n "__fish_seen_subcommand_from detach" -f -a '(__fish_complete_directories)'
complete -c criu-relay -n "__fish_seen_subcommand_from wait" -s h -l help -d 'show this help message and exit'
complete -c criu-relay -n "__fish_seen_subcommand_from wait" -l control -d 'control socket of the daemon' -r -F
complete -c criu-relay -n "__fish_seen_subcommand_from wait" -l timeout -d 'give up after so long, with status 3' -r -f
complete -c criu-relay -n "__fish_seen_subcommand_from wait" -l next -d 'what was decided before does not count'
complete -c criu-relay -n "__fish_seen_subcommand_from wait" -f -a '(__criu_relay_names)'
complete -c criu-relay -n "__fish_seen_subcommand_from commit" -s h -l help -d 'show this help message and exit'
complete -c criu-relay -n "__fish_seen_subcommand_from commit" -l control -d 'control socket of the daemon' -r -F
complete -c criu-relay -n "__fish_seen_subcommand_from commit" -l timeout -d 'give up after so long, with status 3' -r -f
complete -c criu-relay -n "__fish_seen_subcommand_from commit" -l force -d 'at the cache: the source is lost, and shall not come back'
complete -c criu-relay -n "__fish_seen_subcommand_from commit" -f -a '(__criu_relay_names)'
complete -c criu-relay -n "__fish_seen_subcommand_from images" -s h -l help -d 'show this help message and exit'
complete -c criu-relay -n "__fish_seen_subcommand_from images" -l control -d 'control socket of the daemon' -r -F
complete -c criu-relay -n "__fish_seen_subcommand_from images" -l json -d 'as the control API gives it'
complete -c criu-relay -n "__fish_seen_subcommand_from images" -f -a '(__criu_relay_names)'
complete -c criu-relay -n "__fish_seen_subcommand_from discard" -s h -l help -d 'show this help message and exit'
complete -c criu-relay -n "__fish_seen_subcommand_from discard" -l control -d 'control socket of the daemon' -r -F
complete -c criu-relay -n "__fish_seen_subcommand_from discard" -l offset -d 'of the range, in bytes; default 0' -r -f
complete -c criu-relay -n "__fish_seen_subcommand_from discard" -l length -d 'of the range, in bytes; default: to the end' -r -f
complete -c criu-relay -n "__fish_seen_subcommand_from discard" -f -a '(__criu_relay_names)'
complete -c criu-relay -n "__fish_seen_subcommand_from export" -s h -l help -d 'show this help message and exit'
complete -c criu-relay -n "__fish_seen_subcommand_from export" -l control -d 'control socket of the daemon' -r -F
complete -c criu-relay -n "__fish_seen_subcommand_from export" -f -a '(__criu_relay_names)'
complete -c criu-relay -n "__fish_seen_subcommand_from export" -f -a '(__fish_complete_directories)'
complete -c criu-relay -n "__fish_seen_subcommand_from import" -s h -l help -d 'show this help message and exit'
complete -c criu-relay -n "__fish_seen_subcommand_from import" -l control -d 'control socket of the daemon' -r -F
complete -c criu-relay -n "__fish_seen_subcommand_from import" -f -a '(__fish_complete_directories)'
complete -c criu-relay -n "__fish_seen_subcommand_from import" -f -a '(__criu_relay_names)'
complete -c criu-relay -n "__fish_seen_subcommand_from rate" -s h -l help -d 'show this help message and exit'
complete -c criu-relay -n "__fish_seen_subcommand_from rate" -l control -d 'control socket of the daemon' -r -F
complete -c criu-relay -n "__fish_seen_subcommand_from make-certs" -s h -l help -d 'show this help message and exit'
complete -c criu-relay -n "__fish_seen_subcommand_from make-certs" -l control -d 'control socket of the daemon' -r -F
complete -c criu-relay -n "__fish_seen_subcommand_from make-certs" -f -a '(__fish_complete_directories)'
complete -c twistd -a criu-relay-proxy
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l allow-uid -d 'number of a user whose criu may connect, besides root and our own; repeatable' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l config -d 'TOML file: its keys are the long names of these options; the command line wins' -r -F
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l control -d 'endpoint of the control API [default: $XDG_RUNTIME_DIR/criu-relay/proxy.sock, else in /run/criu-relay]' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l criu-dev-link -d 'endpoint of CRIU\'s own image-cache, instead of --link' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l dedup -d 'off: send everything; zero or pages: leave out pages of zeros [default: zero]' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l help -d '
        Display this help and exit.
        '
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l idle -d 'abort an open namespace without a client after so many seconds [default: 3600]' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l images -d 'bind the socket of `criu --remote -D DIR` there; repeatable' -r -f -a '(__fish_complete_directories)'
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l insecure -d 'allow a plain link that leaves this machine: anyone on its way can read and change it'
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l link-fd -d 'number of an inherited, connected stream socket, instead of --link' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l link-timeout -d 'give up a link without an answer after so many seconds [default: 30]' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l link -d 'endpoint of the cache [default: tcp:127.0.0.1:9876]' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l manhole-keys -d 'file of the public keys that may enter --manhole, as authorized_keys of sshd' -r -F
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l manhole -d 'endpoint of an SSH console with a Python prompt, such as tcp:9879:interface=127.0.0.1' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l metrics -d 'endpoint for Prometheus and browsers, read-only, such as tcp:9877:interface=127.0.0.1' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l rate -d 'bytes per second on the link, such as 100M/s, or off [default: off]' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l state -d 'directory for what must outlive this process [default: $XDG_STATE_HOME/criu-relay, else /var/lib/criu-relay]' -r -f -a '(__fish_complete_directories)'
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l stream -d 'bind the socket of `criu --stream -D DIR` there; repeatable' -r -f -a '(__fish_complete_directories)'
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l tls-ca -d 'PEM file with the CA that the peer\'s certificate must be from' -r -F
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l tls-cert -d 'PEM file with our certificate: the link is under mutual TLS 1.3' -r -F
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l tls-key -d 'PEM file with the certificate\'s private key' -r -F
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l tls-peer -d 'DNS name or IP address that the peer\'s certificate must carry one of; repeatable' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l version -d 'Display the version and exit.'
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-proxy" -l window -d 'bytes kept until the cache has them, such as 64M; 0 keeps none and sends no digests [default: 256M]' -r -f
complete -c twistd -a criu-relay-cache
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l allow-uid -d 'number of a user whose criu may connect, besides root and our own; repeatable' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l config -d 'TOML file: its keys are the long names of these options; the command line wins' -r -F
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l control -d 'endpoint of the control API [default: $XDG_RUNTIME_DIR/criu-relay/cache.sock, else in /run/criu-relay]' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l criu-dev-link -d 'endpoint to listen on for CRIU\'s own image-proxy, besides --link' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l dedup -d 'off: keep everything; zero: no pages of zeros; pages: equal pages of a peer once [default: zero]' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l help -d '
        Display this help and exit.
        '
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l idle -d 'abort an open namespace without a client after so many seconds [default: 3600]' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l images -d 'bind the socket of `criu --remote -D DIR` there; repeatable' -r -f -a '(__fish_complete_directories)'
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l insecure -d 'allow a plain link that leaves this machine: anyone on its way can read and change it'
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l link-fd -d 'number of an inherited, connected stream socket, instead of --link' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l link-timeout -d 'give up a link without an answer after so many seconds [default: 30]' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l link -d 'endpoint to listen on [default: tcp:9876:interface=127.0.0.1]' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l manhole-keys -d 'file of the public keys that may enter --manhole, as authorized_keys of sshd' -r -F
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l manhole -d 'endpoint of an SSH console with a Python prompt, such as tcp:9879:interface=127.0.0.1' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l memory -d 'bytes that images may take, such as 4G [default: half of the available memory]' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l metrics -d 'endpoint for Prometheus and browsers, read-only, such as tcp:9877:interface=127.0.0.1' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l release -d 'give images back while a restore reads them: it can be tried once only'
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l retain -d 'keep images after a confirmed restore, so that they can be restored again'
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l spill -d 'directory on a disk for namespaces that nobody reads, when memory is short' -r -f -a '(__fish_complete_directories)'
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l state -d 'directory for what must outlive this process [default: $XDG_STATE_HOME/criu-relay, else /var/lib/criu-relay]' -r -f -a '(__fish_complete_directories)'
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l stream -d 'bind the socket of `criu --stream -D DIR` there; repeatable' -r -f -a '(__fish_complete_directories)'
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l tls-ca -d 'PEM file with the CA that the peer\'s certificate must be from' -r -F
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l tls-cert -d 'PEM file with our certificate: the link is under mutual TLS 1.3' -r -F
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l tls-key -d 'PEM file with the certificate\'s private key' -r -F
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l tls-peer -d 'DNS name or IP address that the peer\'s certificate must carry one of; repeatable' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l ttl -d 'discard a committed namespace that nobody asks for after so many seconds, or never [default: never]' -r -f
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l version -d 'Display the version and exit.'
complete -c twistd -n "__fish_seen_subcommand_from criu-relay-cache" -l warm -d 'bytes of free memory kept ready: as much as is migrated at once [default: 256M; with --release none]' -r -f
