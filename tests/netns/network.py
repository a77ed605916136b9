"""A small network of its own: machines (network namespaces) on a switch (a bridge, in a namespace too), with cables to pull.

Nothing of it touches the host's own interfaces, addresses or routes, so any number of them can stand side by side. Who wants
to talk to a machine does so from inside: `inside` runs a function in a thread that has entered the machine's network.
"""

import ctypes
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PREFIX = "198.18.0"  # RFC 2544: for tests of networks
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str | None:
    """A sentence when no namespaces can be made here."""
    if shutil.which("ip") is None:
        return "needs `ip` (iproute2)"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    probe = f"arriero-{secrets.token_hex(4)}"
    try:
        ip("netns", "add", probe)
        ip("-n", probe, "link", "add", "br0", "type", "bridge")
        ip("-n", probe, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    except subprocess.CalledProcessError as error:
        return f"no network namespaces with bridges here: {error.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", probe], capture_output=True)
    return None


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=10).stdout


def enter(namespace: str) -> None:
    """This thread, and only it, makes its sockets in that namespace from now on."""
    with open(f"/run/netns/{namespace}") as entrance:
        if _libc.setns(entrance.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


class Machine:
    """`address` is its place in the network; what listens on 127.0.0.1 there is its own as well."""

    def __init__(self, network: "Network", name: str, number: int) -> None:
        self.name = name
        self.address = f"{PREFIX}.{number}"
        self.namespace = f"{network.name}-{name}"
        self._network = network
        self._port = f"to-{name}"  # its port of the switch

    def plug_in(self) -> None:
        switch = self._network.switch
        ip("netns", "add", self.namespace)
        ip("link", "add", self._port, "netns", switch, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.namespace, "link", "set", device, "up")
        ip("-n", switch, "link", "set", self._port, "up", "master", "br0")

    def cut(self) -> None:
        """Frames end at the switch. The machine's own link stays up: nobody is told anything."""
        ip("-n", self._network.switch, "link", "set", self._port, "nomaster")

    def join(self) -> None:
        ip("-n", self._network.switch, "link", "set", self._port, "master", "br0")

    def delay(self, ms: int) -> bool:
        """Hold back what goes to the machine and what comes from it. False: this kernel has no netem."""
        ends = [(self._network.switch, self._port), (self.namespace, "eth0")]
        for namespace, device in ends:
            done = subprocess.run(
                ["tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "netem", "delay", f"{ms}ms"],
                capture_output=True,
            )
            if done.returncode != 0:
                return False
        return True

    def inside(self, do: Callable[[], T]) -> T:
        """`do()` in this machine's network, in a thread of its own."""
        with ThreadPoolExecutor(1, initializer=enter, initargs=(self.namespace,)) as thread:
            return thread.submit(do).result()

    def spawn(self, *command: str, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        """`ip netns exec` becomes the command: the pid is the command's own."""
        with log.open("ab") as out:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *command],
                env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip


class Network:
    def __init__(self) -> None:
        self.name = f"arriero-{secrets.token_hex(4)}"
        self.switch = f"{self.name}-switch"
        self.machines: list[Machine] = []

    def start(self) -> None:
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")

    def machine(self, name: str) -> Machine:
        made = Machine(self, name, len(self.machines) + 10)
        self.machines.append(made)
        made.plug_in()
        return made

    def remove(self) -> None:
        """The cables go with the namespaces. What still runs inside must have been ended before."""
        for namespace in [*(machine.namespace for machine in self.machines), self.switch]:
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, timeout=10)
