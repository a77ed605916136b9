#!/bin/sh
# Writes the users of nats-server, each with what it needs and no more, and makes the passwords that are missing.
#
#   users.sh SECRETS USERS_CONF [NODE | client:NAME | server:HOST]…
#
# SECRETS     folder of the passwords, one file each: nats-gateway, nats-worker-<node>, nats-client-<name>, …
# USERS_CONF  the file that server.conf or cluster.conf includes; written whole
# NODE        a node that joins the fleet; those that have a password already stay, so name only new ones
# client:NAME an internal service with NATS credentials of its own (docs/nats.md)
# server:HOST a server of the cluster; name all of them: route.conf is written beside USERS_CONF, and else left as it is
#
# Run it again after adding a node, or after deleting the file of one that left; then have nats-server read it again
# (systemctl reload arriero-nats): connections of users that stayed as they were go on.
set -euf
umask 077

[ $# -ge 2 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2; }
secrets=$1 conf=$2
shift 2
mkdir -p "$secrets"

need() { # need FILE: a password in it
  [ -s "$secrets/$1" ] || head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$secrets/$1"
}

plain() { # plain NAME: is it one subject token?
  case $1 in '' | *[!A-Za-z0-9_-]*) echo "$0: a name has only A-Z a-z 0-9 _ - (got '$1')" >&2; exit 2 ;; esac
  [ ${#1} -le 64 ] || { echo "$0: a name has at most 64 characters (got '$1')" >&2; exit 2; }
}

quoted() { # quoted WORD…: "a", "b"
  separator=
  for word; do printf '%s"%s"' "$separator" "$word"; separator=', '; done
}

user() { # user NAME FILE PUBLISH SUBSCRIBE [MORE]: subjects separated by blanks, and another line of permissions
  printf '    {\n      user: "%s", password: "%s"\n      permissions: {\n' "$1" "$(cat "$secrets/$2")"
  printf '        publish: { allow: [%s] }\n' "$(quoted $3)"
  printf '        subscribe: { allow: [%s] }\n' "$(quoted "_INBOX.$1.>" $4)"
  [ -z "${5-}" ] || printf '        %s\n' "$5"
  printf '      }\n    }\n'
}
# To requests; a gateway may take five minutes for an answer (api.<client>.get with wait_s).
answers='allow_responses: { max: 1000, expires: "6m" }'

api() { for verb; do printf '$JS.API.%s ' "$verb"; done; }
follow() { # follow STREAM…: to read along
  for stream; do printf '$JS.API.CONSUMER.%s ' "CREATE.$stream.>" "DELETE.$stream.*"; done
  printf '$JS.FC.> '
}
compare=$(api INFO 'STREAM.INFO.*')

servers=
for name in admin auth gateway router; do need "nats-$name"; done
for name; do
  case $name in
  client:*)
    name=${name#client:}
    plain "$name"
    case $name in admin | auth | gateway | router | worker-*) echo "$0: '$name' is a service's name" >&2; exit 2 ;; esac
    need "nats-client-$name"
    ;;
  server:*)
    name=${name#server:}
    case $name in '' | *[!A-Za-z0-9.-]*) echo "$0: '$name' is no host name" >&2; exit 2 ;; esac
    need nats-route
    servers="$servers $name"
    ;;
  router) echo "$0: a node cannot be called router" >&2; exit 2 ;;
  *) plain "$name" && need "nats-worker-$name" ;;
  esac
done

put() { # put FILE: standard input into it; owner and mode of one that is there stay, so nats-server can still read it
  cat >"$1.new"
  if [ -e "$1" ]; then cat "$1.new" >"$1" && rm "$1.new"; else mv "$1.new" "$1"; fi
}

if [ -n "$servers" ]; then
  route=$(dirname "$conf")/route.conf password=$(cat "$secrets/nats-route")
  {
    echo "# Written by users.sh; it holds a password."
    printf 'authorization { user: "route", password: "%s" }\nroutes: [\n' "$password"
    for name in $servers; do printf '  "nats://route:%s@%s:6222"\n' "$password" "$name"; done
    echo "]"
  } | put "$route"
fi

{
  echo "# Written by users.sh; it holds passwords."
  echo "authorization {"
  echo "  users: ["
  # People: arriero nats init, the nats command.
  printf '    { user: "admin", password: "%s" }\n' "$(cat "$secrets/nats-admin")"
  user auth nats-auth \
    "$compare $(follow KV_clients KV_signing KV_revoked KV_attempts)
     $(api STREAM.MSG.GET.KV_clients STREAM.MSG.GET.KV_signing STREAM.MSG.GET.KV_revoked STREAM.MSG.GET.KV_attempts)
     \$KV.clients.> \$KV.signing.> \$KV.revoked.> \$KV.attempts.>
     audit.auth.* $(follow AUDIT) $(api STREAM.MSG.GET.AUDIT DIRECT.GET.AUDIT DIRECT.GET.AUDIT.audit.auth.\*)" '' "$answers"
  user gateway nats-gateway \
    "$compare $(follow JOBS KV_nodes KV_clients KV_revoked KV_models KV_attempts)
     $(api CONSUMER.MSG.NEXT.JOBS.\* STREAM.MSG.GET.JOBS STREAM.MSG.GET.KV_models STREAM.MSG.GET.KV_limits STREAM.MSG.GET.KV_attempts DIRECT.GET.JOBS)
     jobs.*.*.new cancels.*.* parts.*.*.*.* evt.*.* ctl.router.place ctl.router.erase ctl.router.quote ctl.*.*.read ctl.*.*.model
     \$KV.models.> \$KV.limits.> \$KV.attempts.>
     audit.gateway.* $(api DIRECT.GET.AUDIT.audit.gateway.\*)" \
    'api.*.* out.*.*.*.*.c evt.*.* prefix.*.*' "$answers"
  user router nats-router \
    "$compare $(follow JOBS KV_nodes KV_models) $(api STREAM.MSG.GET.JOBS STREAM.MSG.GET.OUT STREAM.MSG.GET.KV_leases STREAM.MSG.GET.KV_models DIRECT.GET.JOBS DIRECT.GET.OUT STREAM.PURGE.JOBS STREAM.PURGE.OUT)
     jobs.*.*.* cancels.*.* parts.*.*.*.* evt.*.* prefix.*.* ctl.*.*.run ctl.*.*.cancel ctl.*.*.model ctl.*.*.ping \$KV.leases.*" \
    'ctl.router.> $KV.nodes.*' "$answers"
  set +f
  for file in "$secrets"/nats-worker-*; do
    set -f
    node=${file##*/nats-worker-}
    [ "$node" != '*' ] || continue
    user "worker-$node" "nats-worker-$node" \
      "$compare $(api STREAM.MSG.GET.JOBS STREAM.MSG.GET.KV_nodes DIRECT.GET.JOBS)
       jobs.*.*.done parts.*.*.*.* out.$node.*.*.*.* evt.*.* ctl.router.free ctl.$node.*.ping \$KV.nodes.$node" \
      "ctl.$node.> \$KV.nodes.$node" "$answers"
  done
  set +f
  for file in "$secrets"/nats-client-*; do
    set -f
    client=${file##*/nats-client-}
    [ "$client" != '*' ] || continue
    # As docs/nats.md says; what it may do there is its client's policy.
    user "$client" "nats-client-$client" "api.$client.>" "out.*.$client.> evt.$client.>"
  done
  echo "  ]"
  echo "}"
} | put "$conf"
