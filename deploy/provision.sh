#!/usr/bin/env bash
# Provision a Debian 12 machine: packages, user, directories, the environment, the service. May be run again: it upgrades.
# Usage: provision.sh SOURCE   (a checkout of flowkin; it is copied to /opt/flowkin)
set -euo pipefail
source_dir=${1:?usage: provision.sh SOURCE}

say() { printf '== %s\n' "$*"; }

say packages
export DEBIAN_FRONTEND=noninteractive
export ORT_DISABLE_TELEMETRY=1 # onnxruntime, in the export of the text model
apt-get update -q
apt-get install -y -q --no-install-recommends python3 python3-venv make rsync libseccomp2

say 'users and directories'
# flowkin: runs the engine; its members may ask. flowkin-write: its members may also write.
getent group flowkin >/dev/null || groupadd --system flowkin
getent group flowkin-write >/dev/null || groupadd --system flowkin-write
getent passwd flowkin >/dev/null ||
  useradd --system --gid flowkin --home-dir /var/lib/flowkin --no-create-home --shell /usr/sbin/nologin flowkin
install -d -o root -g root -m 0755 /opt/flowkin
install -d -o root -g flowkin -m 0750 /etc/flowkin
install -d -o flowkin -g flowkin -m 0700 /var/lib/flowkin
# /run/flowkin is the unit's RuntimeDirectory: made at each start, 0750, gone at each stop

say 'code and environment'
rsync -a --delete --exclude .git --exclude .venv --exclude '*.egg-info' "$source_dir"/ /opt/flowkin/
chown -R root:root /opt/flowkin
umask 022
rm -f /opt/flowkin/.venv/.ready # whatever its time: the packages may have changed
make -C /opt/flowkin setup
/opt/flowkin/.venv/bin/python -m compileall -q /opt/flowkin/ipc /opt/flowkin/engine /opt/flowkin/cli
ln -sfn /opt/flowkin/.venv/bin/flowkin /usr/local/bin/flowkin

say configuration
if [ ! -e /etc/flowkin/flowkin.toml ]; then
  config=$(mktemp /etc/flowkin/.flowkin.toml.XXXXXX)
  sed -e 's|^query = ""|query = "/run/flowkin/query.sock"|' \
    -e 's|^write = ""|write = "/run/flowkin/write.sock"|' \
    -e 's|^write_group = ""|write_group = "flowkin-write"|' /opt/flowkin/examples/flowkin.toml >"$config"
  chown root:flowkin "$config"
  chmod 0640 "$config"
  mv "$config" /etc/flowkin/flowkin.toml
fi

say service
install -D -o root -g root -m 0644 /opt/flowkin/deploy/flowkin.service /etc/systemd/system/flowkin.service
if [ ! -d /run/systemd/system ]; then
  say 'systemd does not run here: the unit is in place, nothing was started'
  exit 0
fi
systemctl daemon-reload
systemctl enable flowkin.service
systemctl restart flowkin.service
systemctl --no-pager status flowkin.service
