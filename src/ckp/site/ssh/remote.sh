# Runs one command as root on a host, with limits on its life. Sent by ckp.site.ssh; its arguments: TOKEN SECONDS SIZE HOW COMMAND...
#
# Standard input has SIZE bytes for the command and then stays open for as long as somebody waits for it: its end, whatever the cause, ends the
# command. So does the time limit, for the case that the connection is lost and this host does not notice.
#
# HOW: apart      standard output and standard error are two streams
#      together   standard error goes into standard output, in order
#      direct     as apart, but the command reads its input as it comes, and itself ends when too little of it comes
#
# Lines that begin with TOKEN say that the command begins, and how it ended: whatever else ends, as a login shell or ssh, says none of them.
token=$1 seconds=$2 size=$3 how=$4
shift 4
cd / && unset OLDPWD
umask 022
exec 3<&0 </dev/null
[ "$how" != together ] || exec 2>&1
echo "$token begin"
[ "$how" = together ] || echo "$token begin" >&2

if [ "$how" = direct ]; then
    exec 4<&3
elif [ "$size" -gt 0 ]; then
    kept=$(mktemp /run/ckp-input.XXXXXX) || exit 1
    trap 'rm -f "$kept"' EXIT
    trap 'exit 1' HUP INT TERM
    timeout "$seconds" head -c "$size" <&3 >"$kept"
    [ "$(wc -c <"$kept")" -eq "$size" ] || exit 1
    exec 4<"$kept"
    rm -f "$kept"
    trap - EXIT HUP INT TERM
else
    exec 4</dev/null
fi

# `timeout` makes a process group, which can be killed as a whole. The last line comes from inside of it: a command that was killed has none.
timeout -k 5 "$seconds" sh -c 'token=$1; shift; (exec "$@" <&4 4<&-); echo "$token code $?" >&2' sh "$token" "$@" 3<&- &
group=$!
watch=
if [ "$how" != direct ]; then
    (
        cat <&3
        kill -s KILL -- "-$group" "$group"
    ) >/dev/null 2>&1 4<&- &
    watch=$!
fi
exec 3<&- 4<&-
wait "$group"
code=$?
[ -z "$watch" ] || kill -s KILL "$watch" 2>/dev/null
echo "$token ended $code" >&2
