#!/bin/sh
# record_usage.sh COMPILER ARGUMENTS... -o OBJECT ...
# Compiles, keeps ptxas's report in OBJECT.usage and prints the rest of the messages.
object= previous=
for argument; do
    [ "$previous" = -o ] && object=$argument
    previous=$argument
done
messages=$(mktemp) || exit 1
"$@" 2>"$messages"
status=$?
if [ -n "$object" ]; then
    grep -E '^ptxas info|bytes stack frame' "$messages" >"$object.usage"
fi
grep -vE '^ptxas info|bytes stack frame' "$messages" >&2
rm -f "$messages"
exit $status
