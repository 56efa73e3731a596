#!/usr/bin/env bash
# A SLURM of one node on this machine, without systemd or cgroups: for trials, not for work. Debian or Ubuntu, as root.
#   benchmarks/slurm/slurm.sh start | stop | install
# `start` prints the line that lets this shell's sbatch and squeue find it.
set -euo pipefail
DIR=${BAYESLORA_SLURM:-/var/tmp/bayeslora-slurm}
export SLURM_CONF=$DIR/slurm.conf

install() {
    apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
}

configure() {
    local host memory
    host=$(hostname -s)
    memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
    grep -qw "$host" /etc/hosts || echo "127.0.0.1 $host" >>/etc/hosts
    mkdir -p "$DIR/state" "$DIR/spool"
    cat >"$SLURM_CONF" <<CONF
ClusterName=bayeslora
SlurmctldHost=$host
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.pid
SlurmctldLogFile=$DIR/slurmctld.log
SlurmdLogFile=$DIR/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
NodeName=$host CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
}

start() {
    command -v slurmctld >/dev/null && command -v munged >/dev/null || install
    configure
    if ! munge -n >/dev/null 2>&1; then
        mkdir -p /run/munge && chown munge: /run/munge
        runuser -u munge -- /usr/sbin/munged
    fi
    slurmctld -c -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF"
    for _ in $(seq 60); do
        sinfo --noheader --format=%t 2>/dev/null | grep -q idle && break
        sleep 1
    done
    sinfo
    echo "export SLURM_CONF=$SLURM_CONF"
}

stop() {
    for daemon in slurmd slurmctld; do
        if [ -f "$DIR/$daemon.pid" ]; then kill "$(cat "$DIR/$daemon.pid")"; fi
    done
    if [ -f /run/munge/munged.pid ]; then kill "$(cat /run/munge/munged.pid)"; fi
}

case ${1:-} in install | start | stop) "$1" ;; *) echo "usage: $0 install|start|stop" >&2; exit 2 ;; esac
