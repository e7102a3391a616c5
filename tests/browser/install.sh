#!/usr/bin/env bash
# Install what tests/browser needs on Debian or Ubuntu: Chromium, fonts, and pdftotext to read what is printed.
# Exit code 0: everything is there; 3: it cannot be installed here, one line on stderr says why.
set -euo pipefail

# Ubuntu's chromium is a snap, which wants a running snapd: another Chrome that is there already will do.
for browser in chromium chromium-browser google-chrome google-chrome-stable; do
  ! command -v "$browser" >/dev/null || found=$browser
done
missing=()
[ -n "${found:-}" ] || missing+=(chromium)
command -v pdftotext >/dev/null || missing+=(poppler-utils)
[ ${#missing[@]} -gt 0 ] || exit 0

refuse() { echo "cannot install ${missing[*]}: $1" >&2; exit 3; }
[ "$(id -u)" = 0 ] || refuse "this needs root; run it as root: tests/browser/install.sh"
grep -qsE '^(ID|ID_LIKE)=.*(debian|ubuntu)' /etc/os-release && command -v apt-get >/dev/null \
  || refuse "apt-get packages are known for Debian and Ubuntu only; install ${missing[*]} by hand"

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq || refuse "apt-get update failed; is the network up?"
apt-get install -y -qq --no-install-recommends "${missing[@]}" fonts-dejavu-core
