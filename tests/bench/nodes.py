"""A Ray head and two more raylets on loopback as three nodes; nodes, drivers and heads are killed -9 by turns.

    python tests/bench/nodes.py [--kills 6]

The run is started again after each kill of its driver, a node comes back after each kill of its own. With its head the
cluster is gone: the driver has to leave by itself, with exit code 3 (2 where it had not joined yet), and goes on with
a new cluster. In the end the arrays are compared with those of one process. Never `ray stop`: it ends by name
whatever looks like Ray's.
"""

import argparse
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
from clusters import arrays_digest

from preprocess.machine import device, versions
from preprocess.synthetic import make_videos
from shared.store.index import Index, read_failures

LOOPBACK = "127.0.0.1"
ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token",
               "RAY_AUTH_TOKEN": secrets.token_hex()}     # the first keeps every socket on loopback


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return str(probe.getsockname()[1])


def start_node(folder: Path, head: str | None) -> tuple[subprocess.Popen, str]:
    """A node of one core, the head where there is none; and the head's address."""
    port = free_port()
    where = [f"--address={head}"] if head else [
        "--head", f"--port={port}", f"--dashboard-port={free_port()}", "--include-dashboard=false",
        f"--ray-client-server-port={free_port()}", f"--temp-dir={folder}"]
    line = [Path(sys.executable).with_name("ray"), "start", "--block", f"--node-ip-address={LOOPBACK}", "--num-cpus=1",
            "--object-store-memory=100000000", "--disable-usage-stats",
            f"--dashboard-agent-listen-port={free_port()}", *where]
    with open(folder / "nodes.log", "a") as log:
        process = subprocess.Popen(line, env=os.environ | ENVIRONMENT, stdout=log, stderr=log)
    return process, head or f"{LOOPBACK}:{port}"


def start_cluster(folder: Path) -> tuple[list[subprocess.Popen], str]:
    """A head and two more nodes; and the head's address."""
    head, address = start_node(folder, None)
    return [head, *(start_node(folder, address)[0] for _ in range(2))], address


def kill(process: subprocess.Popen) -> None:
    """-9 for it and all below it, as when a machine goes."""
    below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for one in (process, *below):
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            one.kill()
    process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--pause", type=float, default=20.0, help="seconds between two kills, give or take a half")
    args = parser.parse_args()
    print(device("cpu"), versions())
    rng, temporary = random.Random(0), Path(tempfile.mkdtemp(prefix="nodes-"))    # sockets below it: a short path
    nodes, driver = [], None
    try:
        videos, one, store = temporary / "videos", temporary / "one", temporary / "store"
        make_videos(videos, videos=24, seed=0, backgrounds=4, textures=4, frames=48, height=96, width=128)
        line = [sys.executable, "-m", "preprocess.run", "--dataset", "folder", "--videos", str(videos), "--set",
                "packs.videos=1", "--flow", "cpu", "--set", "iterations=300", "--set", "retries=8"]
        subprocess.run([*line, "--store", str(one), "--engine", "serial"], check=True, capture_output=True)
        nodes, address = start_cluster(temporary)
        line += ["--store", str(store), "--engine", "ray", "--address"]
        kills, stops, due = {"node": 0, "driver": 0, "head": 0}, 0, None
        while True:
            if driver is None:
                driver = subprocess.Popen([*line, address], env=os.environ | ENVIRONMENT, stdout=subprocess.DEVNULL,
                                          stderr=subprocess.PIPE, text=True)
            if driver.poll() == 0:
                break
            if driver.poll() is not None:
                stops += 1
                print(f"the driver left with {driver.returncode}: {driver.stderr.read().splitlines()[-1:]}", flush=True)
                if driver.returncode not in (2, 3):
                    raise SystemExit("expected exit code 3; 2 where it had not joined yet")
                if stops > 10 + args.kills:
                    raise SystemExit("it does not get on")
                driver = None
                time.sleep(3)
                continue
            if due is None and list(store.glob("packs/*/[!.]*")):
                due = time.monotonic()
            if due is not None and time.monotonic() > due and sum(kills.values()) < args.kills:
                kind = min(kills, key=kills.get)
                kills[kind] += 1
                if kind == "node":
                    number = rng.choice((1, 2))
                    kill(nodes[number])
                    nodes[number] = start_node(temporary, address)[0]
                elif kind == "driver":
                    kill(driver)
                    driver = None
                else:
                    kill(nodes[0])
                    driver.wait(timeout=120)
                    for node in nodes:
                        kill(node)
                    nodes, address = start_cluster(temporary)
                print(f"{kills}, {len(list(store.glob('packs/*/[!.]*')))} packs", flush=True)
                due = time.monotonic() + rng.uniform(0.5, 1.5) * args.pause
            time.sleep(0.1)
        subprocess.run([sys.executable, "-m", "preprocess.check", str(store)], check=True)
        same = arrays_digest(store) == arrays_digest(one) and Index.load(store).id == Index.load(one).id
        print(f"kills: {kills}; {stops} stops by themselves: arrays "
              f"{'identical' if same and not read_failures(store) else 'DIFFERENT'}")
    finally:
        for process in (driver, *nodes):
            if process:
                kill(process)
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    main()
