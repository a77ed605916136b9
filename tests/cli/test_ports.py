"""Which port is whose, and what is said when one is taken."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.cli.failures import CommandFailed
from libs.cli.up.ollama import simulated_nodes
from libs.cli.up.ports import SPAN, check_free, plan_ports
from libs.cli.up.processes import Counts, service_names


def test_the_ports_of_a_plain_stack_are_those_of_the_design():
    ports = plan_ports(8700, gateways=2, services=["auth", "gateway", "gateway-2", "router"], sims=["a", "b"])

    assert ports.gateways == (8700, 8750)
    assert (ports.auth, ports.nats, ports.monitor) == (8701, 8702, 8703)
    assert ports.ops == {"auth": 8710, "gateway": 8711, "gateway-2": 8712, "router": 8713}
    assert ports.sims == {"a": 8730, "b": 8731}


@given(
    base=st.integers(1, 65536 - SPAN), gateways=st.integers(1, 5), routers=st.integers(1, 4), sims=st.integers(1, 10)
)
def test_no_port_is_given_twice_and_none_leaves_its_span(base: int, gateways: int, routers: int, sims: int):
    nodes = simulated_nodes(sims, None)
    services = service_names(Counts(gateways=gateways, routers=routers), nodes)

    ports = [
        port
        for port, _ in plan_ports(base, gateways=gateways, services=services, sims=[n.name for n in nodes]).needed()
    ]

    assert len(set(ports)) == len(ports) == 3 + gateways + len(services) + sims
    assert all(base <= port < base + SPAN for port in ports)


@pytest.mark.parametrize(
    ("base", "gateways", "services", "sims", "said"),
    [
        (65500, 1, 4, 1, "--port-base"),
        (0, 1, 4, 1, "--port-base"),
        (8700, 1, 21, 1, "room for 20 service processes"),
        (8700, 1, 4, 21, "room for 20 simulated nodes"),
        (8700, 22, 4, 1, "room for 20 further gateways"),
    ],
)
def test_what_does_not_fit_is_refused(base: int, gateways: int, services: int, sims: int, said: str):
    with pytest.raises(CommandFailed, match=said):
        plan_ports(
            base, gateways=gateways, services=[str(n) for n in range(services)], sims=[str(n) for n in range(sims)]
        )


def test_a_taken_port_is_named_with_its_purpose_and_the_way_out():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(CommandFailed, match=rf"port {port}, needed for auth, is taken .*--port-base"):
            check_free([(port, "auth")])


def test_a_port_that_was_just_closed_is_free():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            pass

    check_free([(port, "auth")])
