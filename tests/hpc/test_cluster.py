"""The cluster itself: that it is one, that it keeps to itself, and that it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm

TOOL = Path(__file__).parents[2] / "tools" / "slurm.py"


def test_a_job_gets_both_nodes(slurm):
    done = slurm.run("srun", "--nodes=2", "sh", "-c", "echo $SLURMD_NODENAME")
    assert sorted(done.stdout.split()) == ["n1", "n2"], done.stderr


def test_two_small_jobs_go_to_two_nodes(slurm, tmp_path):
    # Each runs until the other one does.
    job = "touch $SLURMD_NODENAME; until [ -e n1 ] && [ -e n2 ]; do sleep 0.05; done"
    script = f"for i in 1 2; do srun -n1 --mem=1 --time=1 sh -c '{job}' & done; wait"
    slurm.run("sh", "-c", script, cwd=tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["n1", "n2"]


def test_it_listens_on_loopback_only(slurm):
    ports = {int(port) for port in re.findall(r"Port=(\d+)", slurm.conf.read_text())}
    assert len(ports) == 3
    listening = [
        address
        for table in ("tcp", "tcp6")
        for _, address, _, state, *_ in map(
            str.split, Path(f"/proc/net/{table}").read_text().splitlines()
        )
        if state == "0A" and int(address.rpartition(":")[2], 16) in ports
    ]
    assert {address.partition(":")[0] for address in listening} == {"0100007F"}
    assert len(listening) == 3


class TestHosts:
    def test_each_has_its_own_name_and_memory(self, slurm_hosts):
        script = "hostname; touch /dev/shm/$(hostname); ls /dev/shm"
        done = slurm_hosts.run("srun", "--nodes=2", "--label", "sh", "-c", script)
        by_node: dict[str, list[str]] = {}
        for line in done.stdout.splitlines():
            task, text = line.split(": ", maxsplit=1)
            by_node.setdefault(task, []).append(text)
        assert sorted(by_node.values()) == [
            ["n1", "n1"],
            ["n2", "n2"],
        ]
        assert not Path("/dev/shm/n1").exists()

    def test_they_reach_each_other_by_name_only_over_the_network(self, slurm_hosts):
        # Loopback is each host's own: nobody answers there for another one.
        serve = "import socket; s = socket.create_server(('', 7777)); s.accept()[0].send(b'hello')"
        ask = "import socket; print(socket.create_connection(('n1', 7777), 5).recv(5))"
        wrong = ask.replace("n1", "127.0.0.1")
        script = f"""
        if [ $SLURMD_NODENAME = n1 ]; then exec python -c "{serve}"; fi
        until python -c "{ask}" 2>/dev/null; do sleep 0.1; done
        python -c "{wrong}" 2>&1 | tail -n 1
        """
        done = slurm_hosts.run("srun", "--nodes=2", "bash", "-c", script)
        assert done.stdout.splitlines() == [
            "b'hello'",
            "ConnectionRefusedError: [Errno 111] Connection refused",
        ]

    def test_they_see_the_same_files(self, slurm_hosts, tmp_path):
        slurm_hosts.run("srun", "--nodes=2", "sh", "-c", "touch $(hostname)", cwd=tmp_path)
        assert sorted(os.listdir(tmp_path)) == ["n1", "n2"]


@pytest.mark.parametrize("fixture", ["slurm", "slurm_hosts"])
def test_nothing_is_left_when_its_user_is_killed(fixture, request, tmp_path, wait_until):
    """Not the daemons, nor their directory, nor what a job has started and let go."""
    request.getfixturevalue(fixture)  # skips where there can be none
    options = ["--hosts"] if fixture == "slurm_hosts" else []
    user = f"""if True:
        import subprocess, sys, time
        subprocess.Popen({[sys.executable, str(TOOL), "serve", *options]}, stdin=subprocess.PIPE)
        time.sleep(1000)
    """
    with subprocess.Popen([sys.executable, "-c", user], stdout=subprocess.PIPE) as process:
        facts = json.loads(process.stdout.readline())
        pid_file = tmp_path / "pid"
        job = f"setsid sh -c 'echo $$ >{pid_file}; exec sleep 1000' & sleep 1000"
        subprocess.run(
            [*facts["enter"], "sbatch", "--output=/dev/null", f"--wrap={job}"],
            env={**os.environ, "SLURM_CONF": facts["conf"]},
            cwd="/",
            check=True,
            capture_output=True,
        )
        wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
        escaped = int(pid_file.read_text())
        assert Path(f"/proc/{escaped}").exists()
        process.send_signal(signal.SIGKILL)

    directory = Path(facts["conf"]).parent
    wait_until(lambda: not directory.exists())
    assert not Path(f"/proc/{escaped}").exists()
    assert not [pid for pid in processes_with(str(directory)) if pid != os.getpid()]


def processes_with(text: str) -> list[int]:
    """Return the processes that have `text` on their command line or in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            everything = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:  # has ended, or is somebody else's
            continue
        if text.encode() in everything:
            found.append(int(folder.name))
    return found


class TestTool:
    def run(self, *arguments, **environment):
        return subprocess.run(
            [sys.executable, TOOL, *arguments],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def test_run_gives_the_commands_exit_status(self, slurm):
        done = self.run("run", "sh", "-c", "srun -n1 echo from a job; exit 7")
        assert (done.stdout, done.returncode) == ("from a job\n", 7), done.stderr

    def test_run_hides_the_job_that_it_may_be_in_itself(self, slurm):
        script = 'echo "${SLURM_JOB_ID-none}"'
        done = self.run("run", "sh", "-c", script, SLURM_JOB_ID="4711")
        assert done.stdout == "none\n"

    def test_without_slurm_it_says_what_is_missing_and_what_to_do(self):
        done = self.run("run", "true", PATH="/nowhere")
        assert done.returncode == 69
        assert "sbatch" in done.stderr
        assert "tools/slurm.py install" in done.stderr
        assert "Traceback" not in done.stderr
