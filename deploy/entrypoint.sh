# Runs its arguments with the secret settings of the container's folder in the environment.
#
# A setting that the container was given itself wins over the file's, so that one can be changed without metal-init.
set -eu
file="${METALPLANE_ENV_FILE:-/run/metalplane/env}"
if [ -f "$file" ]; then
    given="$(export -p)"
    set -a
    . "$file"
    set +a
    eval "$given"
fi
unset METALPLANE_ENV_FILE given file
exec "$@"
