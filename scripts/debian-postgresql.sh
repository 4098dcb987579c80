#!/bin/sh
# Installs Debian's PostgreSQL 15 with its server headers and contrib modules, without starting a server.
# Exit codes: 0 it is there, 3 it cannot be had here (not Debian, no root, not in the package lists).
set -eu

packages="postgresql-15 postgresql-contrib postgresql-server-dev-15"
config=/usr/lib/postgresql/15/bin/pg_config

complete() {
    [ -x /usr/lib/postgresql/15/bin/postgres ] && [ -x $config ] &&
        [ -f "$($config --includedir-server)/postgres.h" ] && [ -f "$($config --sharedir)/extension/postgres_fdw.control" ]
}

unavailable() {
    echo "PostgreSQL 15: $1" >&2
    exit 3
}

if complete; then
    exit 0
fi
command -v apt-get >/dev/null || unavailable "this is no Debian, install it with its server headers by hand"
[ "$(id -u)" = 0 ] || unavailable "only root can install: apt-get install $packages"

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-cache show postgresql-15 >/dev/null 2>&1 || unavailable "not in this Debian's package lists"
if [ ! -d /etc/postgresql-common ]; then
    # The package would make a cluster and start it on port 5432.
    mkdir -p /etc/postgresql-common/createcluster.d
    echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.d/no-main-cluster.conf
fi
# shellcheck disable=SC2086  # a list of words
apt-get install -y -qq --no-install-recommends $packages >/dev/null
complete || unavailable "the packages are installed, but $config is not usable"
