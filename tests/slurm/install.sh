#!/usr/bin/env bash
# Install what tests/slurm needs on Debian or Ubuntu: a real Slurm, none of whose services is started.
# With the argument `accounting` also slurmdbd and MariaDB, for sacct; with `postgres` also Postgres, for an
# MLflow server.
# Exit code 0: everything is there; 3: it cannot be installed here, one line on stderr says why.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

programs=(slurmctld slurmd munged sbatch)
packages=(slurmctld slurmd slurm-client munge)
case "${1:-}" in
  "") ;;
  accounting)
    programs+=(slurmdbd mariadbd mariadb-install-db mariadb-admin)
    packages+=(slurmdbd mariadb-server) ;;
  postgres)
    # Debian keeps its programs off the path.
    export PATH="$PATH:$(echo /usr/lib/postgresql/*/bin)"
    programs+=(initdb pg_ctl)
    packages+=(postgresql) ;;
  *) echo "error: unknown argument '$1'; usage: install.sh [accounting|postgres]" >&2; exit 2 ;;
esac

missing=()
for program in "${programs[@]}"; do
  command -v "$program" >/dev/null || missing+=("$program")
done
[ ${#missing[@]} -gt 0 ] || exit 0

refuse() { echo "cannot install ${missing[*]}: $1" >&2; exit 3; }
[ "$(id -u)" = 0 ] || refuse "this needs root; run it as root: tests/slurm/install.sh ${1:-}"
grep -qsE '^(ID|ID_LIKE)=.*(debian|ubuntu)' /etc/os-release && command -v apt-get >/dev/null \
  || refuse "apt-get packages are known for Debian and Ubuntu only; install ${packages[*]} by hand"

# Package scripts ask policy-rc.d before they start a service; 101 means no. One that is there already is put back.
policy=/usr/sbin/policy-rc.d
[ -e "$policy.kept" ] || [ ! -e "$policy" ] || mv "$policy" "$policy.kept"
trap 'rm -f "$policy"; [ ! -e "$policy.kept" ] || mv "$policy.kept" "$policy"' EXIT
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq || refuse "apt-get update failed; is the network up?"
apt-get install -y -qq --no-install-recommends "${packages[@]}"
