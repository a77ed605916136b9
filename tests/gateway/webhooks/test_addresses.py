"""Which addresses a webhook may reach: by property over all of them, and by a list of traps."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.webhooks.addresses import is_allowed, is_named

OWN = (ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00:1::/64"), ipaddress.ip_network("127.0.0.0/8"))
V4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
V6 = st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address)
PRIVATE_4 = st.sampled_from(
    ["0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
     "192.0.0.0/24", "198.18.0.0/15", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"]
)  # fmt: skip
PRIVATE_6 = st.sampled_from(
    ["::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "2002::/16", "2001::/32", "2001:db8::/32", "100::/64",
     "64:ff9b:1::/48", "3fff::/20", "5f00::/16"]
)  # fmt: skip


def within(network: str, number: int) -> str:
    net = ipaddress.ip_network(network)
    return str(net[number % net.num_addresses])


@given(PRIVATE_4, st.integers(0))
def test_nothing_private_in_any_dress(network: str, number: int) -> None:
    text = within(network, number)
    inner = int(ipaddress.IPv4Address(text))
    dresses = [
        text,
        f"::ffff:{text}",
        f"::{text}",
        f"64:ff9b::{text}",
        str(ipaddress.IPv6Address((0x2002 << 112) | (inner << 80))),
    ]
    assert not [dress for dress in dresses if is_allowed(dress)]


@given(PRIVATE_6, st.integers(0))
def test_nothing_private_of_ipv6(network: str, number: int) -> None:
    assert not is_allowed(within(network, number))


@given(V4)
def test_what_is_allowed_is_global_and_the_same_mapped_or_through_nat64(address: ipaddress.IPv4Address) -> None:
    allowed = is_allowed(str(address))
    assert not allowed or (address.is_global and not address.is_multicast)
    assert is_allowed(f"::ffff:{address}") == allowed == is_allowed(f"64:ff9b::{address}")


@given(V6)
def test_what_is_allowed_of_ipv6_is_global(address: ipaddress.IPv6Address) -> None:
    if is_allowed(str(address)):
        assert address.is_global
        assert not any((address.is_multicast, address.is_private, address.is_link_local, address.is_reserved))


@given(st.one_of(V4, V6))
def test_named_networks_only_add_their_own(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    text = str(address)
    if is_allowed(text):
        assert is_allowed(text, OWN)
    elif is_allowed(text, OWN):
        assert is_named(text, OWN)


@pytest.mark.parametrize(
    "text",
    ["169.254.169.254", "::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "fd00:ec2::254",
     "100.100.100.200", "168.63.129.16", "0.0.0.0", "::", "224.0.0.1", "ff02::1"],
)  # fmt: skip
def test_metadata_and_what_is_no_host_never_whatever_is_named(text: str) -> None:
    assert not is_allowed(text, (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")))


@pytest.mark.parametrize(
    "text", ["fe80::1%eth0", "2606:4700::1%1", "", "localhost", "127.1", "0x7f.1", "2130706433", "1.1.1.1 ", "01.1.1.1"]
)
def test_what_is_no_plain_address_is_none(text: str) -> None:
    assert not is_allowed(text)


@pytest.mark.parametrize("text", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::1.1.1.1"])
def test_the_internet_is(text: str) -> None:
    assert is_allowed(text)


def test_named_ones_are_also_when_mapped() -> None:
    assert is_named("10.1.2.3", OWN)
    assert is_named("::ffff:10.1.2.3", OWN)
    assert is_named("fd00:1::7", OWN)
    assert not is_allowed("10.2.0.1", OWN)
    assert not is_named("1.1.1.1", OWN)
