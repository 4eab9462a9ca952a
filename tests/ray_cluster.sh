# Runs a command beside a Ray cluster of two nodes in a network of its own (`unshare --net`), in which there is only
# loopback: Ray listens on every address of a machine, and whoever reaches it can run code.
# Usage: ray_cluster.sh PYTHON FOLDER COMMAND...; the nodes' raylets are killed with the namespace.
set -e
python=$1 folder=$2
shift 2
ip link set lo up
export RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
node="--disable-usage-stats --num-cpus=1 --object-store-memory=100000000"
ray="$python -m ray.scripts.scripts"
nodes() {
    $ray start --head $node --node-ip-address=127.0.0.1 --port=6379 --include-dashboard=false --temp-dir="$folder" &&
        $ray start $node --node-ip-address=127.0.0.2 --address=127.0.0.1:6379
}
# What it says of itself belongs to standard error: standard output is the command's. A node has 30 s to start, which are
# too few on a machine that is busy for a moment.
nodes >&2 || { $ray stop --force && nodes; } >&2 || { $ray stop --force && nodes; } >&2
exec "$@"
