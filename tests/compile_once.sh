# Compiler launcher of CMake: sh compile_once.sh COMPILER ARGUMENT...
#
# What one build folder has compiled, others take, as with ccache: two compilations are one if all arguments are the
# same but where the results go. Results are kept in the folder DOGE_TEST_OBJECTS, which belongs to one state of the
# sources (see plugin_tree.py).
set -e
object='' depends='' key='' previous=''
for argument; do
    case $previous in
        -o) object=$argument ;;
        -MF) depends=$argument ;;
        *) key="$key $argument" ;;
    esac
    previous=$argument
done
if [ -z "$DOGE_TEST_OBJECTS" ] || [ -z "$depends" ]; then exec "$@"; fi
kept=$DOGE_TEST_OBJECTS/$(printf %s "$key" | sha256sum | cut -c -32)
exec 9> "$kept.lock"
flock 9
if [ ! -f "$kept.o" ]; then
    "$@"
    cp "$depends" "$kept.d"
    cp "$object" "$kept.part"
    mv "$kept.part" "$kept.o"
else
    cp "$kept.d" "$depends"
    cp "$kept.o" "$object"
fi
