"""Three NATS servers on three machines, as deploy/nats/cluster.conf has them, and Arriero on a fourth and fifth."""

from collections.abc import Iterator

import pytest

from tests.netns.network import Machine
from tests.netns.world import NATS_PORT, World, inherited
from tests.support.nats_server import binary
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

START_S = 40.0
ELECTION_S = 15.0


class Cluster(World):
    """Services are told one server; the others they learn from it."""

    def start_servers(self) -> None:
        self.servers = [self.network.machine(f"nats-{n}") for n in (1, 2, 3)]
        self.users(servers=[server.address for server in self.servers])
        text = self.config("cluster.conf")
        for server in self.servers:
            own = text.replace("server_name: nats-1 ", f"server_name: {server.name} ")
            own = own.replace("nats-1.internal", server.address).replace("/store", f"/store/{server.name}")
            path = self.folder / f"{server.name}.conf"
            path.write_text(own)
            self.start(server.name, server, binary(), "-c", str(path), environment=inherited())
        until(lambda: all(self.look(server, 8222, "/healthz") for server in self.servers), within=START_S)

    def leader(self) -> Machine | None:
        """Who leads JOBS, in the eyes of those who can be heard."""
        for server in self.servers:
            answer = self.look(server, 8222, "/jsz?streams=true&accounts=true")
            for account in answer.json().get("account_details", []) if answer else []:
                for stream in account.get("stream_detail", []):
                    if stream["name"] == "JOBS" and stream["cluster"].get("leader") == server.name:
                        return server
        return None


@pytest.fixture
def cluster(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.prepare()
        made.users("gpu-a")
        made.start_servers()
        yield made
    finally:
        made.end()


def test_a_cluster_that_loses_the_machine_of_its_leader(cluster: Cluster) -> None:
    """The leader of three NATS servers, with every service connected to it, is cut off in mid-answer: acknowledged jobs survive,
    the answer goes on in its first attempt (no node is taken for dead), new jobs are taken, no service needs a restart."""
    gpu = cluster.network.machine("gpu-a")
    until(lambda: cluster.init("--replicas", "3", at=cluster.servers[0]).returncode == 0, within=START_S)
    until(cluster.leader, within=START_S)
    leader = cluster.leader()
    assert leader is not None
    url = f"nats://{leader.address}:{NATS_PORT}"
    for kind in ("auth", "router", "gateway"):
        cluster.start_service(kind, cluster.hub, NATS_URL=url)
    cluster.start_node("gpu-a", gpu, "shared:1b=1GB", NATS_URL=url)

    def ready() -> bool:
        services = all(cluster.is_ready(kind, cluster.hub) for kind in ("auth", "router", "gateway"))
        return services and cluster.is_ready("worker", gpu) and cluster.nodes("alive") == 1

    until(ready, within=START_S)
    cluster.create_client()
    job = cluster.submit("shared:1b", 200)
    reader = cluster.read(job)
    until(lambda: reader.tokens > 5, within=20)

    leader.cut()
    until(lambda: "bus.reconnected" in cluster.log("gateway"), within=8)
    until(ready, within=3 * ELECTION_S)
    after = cluster.submit("shared:1b", 10, "the other side")
    until(lambda: reader.done, within=30)
    for one in (job, after):
        view = cluster.final(one)
        assert (view["state"], view["attempts"]) == ("succeeded", 1), view
    assert reader.shown == "".join(event.raw for event in cluster.replay(job))
    assert all(process.poll() is None for process in cluster.processes.values())
    leader.join()
    until(lambda: cluster.look(leader, 8222, "/healthz").status_code == 200, within=START_S)  # type: ignore[union-attr]
