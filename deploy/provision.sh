#!/usr/bin/env bash
# Provision a Debian 12 machine: packages, user, directories, the environment, the service. May be run again.
# Usage: provision.sh SOURCE   (a checkout of flowkin; it is copied to /opt/flowkin)
set -euo pipefail
source_dir=${1:?usage: provision.sh SOURCE}

export DEBIAN_FRONTEND=noninteractive
export ORT_DISABLE_TELEMETRY=1 # onnxruntime, in the export of the text model
apt-get update -q
apt-get install -y -q --no-install-recommends python3 python3-venv make rsync

getent group flowkin >/dev/null || groupadd --system flowkin
getent passwd flowkin >/dev/null ||
  useradd --system --gid flowkin --home-dir /var/lib/flowkin --no-create-home --shell /usr/sbin/nologin flowkin

install -d -o root -g root -m 0755 /opt/flowkin
install -d -o root -g flowkin -m 0750 /etc/flowkin
install -d -o flowkin -g flowkin -m 0700 /var/lib/flowkin

rsync -a --delete --exclude .git --exclude .venv "$source_dir"/ /opt/flowkin/
chown -R root:root /opt/flowkin
make -C /opt/flowkin setup

if [ ! -e /etc/flowkin/flowkin.toml ]; then
  install -o root -g flowkin -m 0640 /opt/flowkin/examples/flowkin.toml /etc/flowkin/flowkin.toml
fi

install -o root -g root -m 0644 /opt/flowkin/deploy/flowkin.service /etc/systemd/system/flowkin.service
systemctl daemon-reload
systemctl enable flowkin.service
systemctl restart flowkin.service
systemctl --no-pager status flowkin.service
