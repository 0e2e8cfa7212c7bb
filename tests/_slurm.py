"""A Slurm of its own on this machine: its controller and two nodes, for as long as it is needed."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests._processes import wait_until

_DAEMONS = ("slurmctld", "slurmd")
# a daemon each, both on this machine
_NODES = ("one", "two")
# a job of the partition `urgent` puts those of `cpu` back into the queue; `all` has both nodes
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
MpiDefault=none
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=2000
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=2000
PartitionName=cpu Nodes=one Default=YES PriorityTier=1
PartitionName=urgent Nodes=one PriorityTier=2 PreemptMode=OFF
PartitionName=all Nodes=one,two PriorityTier=1
"""


def find_slurm() -> bool:
    """Whether this machine has what `apt install slurm-wlm` brings."""
    return all(map(find_daemon, _DAEMONS))


def find_daemon(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@contextmanager
def start_slurm(folder: Path) -> Iterator[None]:
    """Have `sbatch` and the others reach a new Slurm, which ends with all of its jobs."""
    for part in ("state", *(f"spool-{node}" for node in _NODES)):
        (folder / part).mkdir(parents=True)
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in ("slurmctld", *_NODES)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    file = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    values = {"folder": folder, "ports": ports, "user": getpass.getuser(), "host": host}
    file.write_text(_CONFIGURATION.format(**values))
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(file)
    running: list[subprocess.Popen[bytes]] = []
    try:
        for name, *node in (("slurmctld",), *(("slurmd", "-N", node) for node in _NODES)):
            with (folder / f"{'-'.join((name, *node[1:]))}.log").open("wb") as log:
                command = [str(find_daemon(name)), "-D", "-f", str(file), *node]
                running.append(subprocess.Popen(command, stdout=log, stderr=log))
        wait_until(lambda: slurm("sinfo", "-h", "-o", "%D %t", "-p", "all") == "2 idle")
        yield
    finally:
        # all of them end what they began
        slurm("scancel", "--full", "-u", values["user"])
        try:
            wait_until(lambda: not slurm("squeue", "-h", "-t", "running,completing"))
        finally:
            for process in reversed(running):
                process.terminate()
                process.wait(30)
            if before is None:
                del os.environ["SLURM_CONF"]
            else:
                os.environ["SLURM_CONF"] = before


def slurm(*command: str) -> str:
    """What a command of Slurm prints; nothing if it fails."""
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""
