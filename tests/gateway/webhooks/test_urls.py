"""A corpus of URLs that have led servers into their own networks (OWASP API7)."""

import ipaddress
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.webhooks.addresses import is_allowed
from services.gateway.webhooks.urls import BadUrl, parse_url

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
BAD = [
    # not https, or not the web
    "http://hooks.example.org/", "ftp://example.org/", "file:///etc/passwd", "gopher://example.org/", "//example.org/",
    "https:example.org", "https:/example.org", "https:///example.org", "https://", "example.org", "", "https://?", "HTTPS",
    "javascript:alert(1)", "unix:///run/docker.sock",
    # addresses in every spelling
    "https://127.0.0.1/", "https://127.1/", "https://127.0.1/", "https://2130706433/", "https://0x7f000001/",
    "https://0x7f.0.0.1/", "https://0177.0.0.1/", "https://017700000001/", "https://0/", "https://0.0.0.0/",
    "https://127.0.0.1./", "https://10.0.0.1/", "https://192.168.1.1/", "https://172.16.0.1/", "https://169.254.169.254/",
    "https://100.64.0.1/", "https://224.0.0.1/", "https://255.255.255.255/", "https://1.1.1.256/", "https://1.1.1/",
    "https://a.0x1/", "https://a.1/", "https://08.8.8.8/", "https://1.1.1.1.1/",
    "https://[::1]/", "https://[::]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/", "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/", "https://[fd00::1]/", "https://[64:ff9b::127.0.0.1]/", "https://[64:ff9b::7f00:1]/",
    "https://[2002:7f00:1::]/", "https://[::127.0.0.1]/", "https://[2001::1]/", "https://[ff02::1]/", "https://[::1", "https://::1/",
    "https://[1.1.1.1]/", "https://[v1.x]/", "https://[fd00:ec2::254]/",
    # who is asked depends on who reads it
    "https://user@example.org/", "https://user:pw@example.org/", "https://example.org@127.0.0.1/",
    "https://example.org:443@127.0.0.1/", "https://example.org\\@127.0.0.1/", "https://example.org#@127.0.0.1/",
    "https://example.org/#part", "https://example.org\t/", "https://exa\nmple.org/", " https://example.org/",
    "https://example.org/ ", "https://example.org/a b", "https://example.org\r\nHost: x/", "https://example.org\x00/",
    "https://example.org%00.evil.org/", "https://%31%32%37.0.0.1/", "https://127.0.0.1%2f.example.org/",
    "https://example.org/%zz", "https://example.org/%0", "https://ex_ample.org/", "https://-a.org/", "https://a-.org/",
    "https://a..org/", "https://.example.org/", "https://example.org./", "https://example.org:/", "https://" + "a" * 64 + ".org/",
    # letters that look or count like others
    "https://exämple.org/", "https://１２７.０.０.１/", "https://①②⑦.⓪.⓪.①/", "https://127。0。0。1/", "https://loc\u200balhost/",
    "https://example\u00ad.org/", "https://example.org\uff0f@evil.org/", "https://ⓔxample.org/", "https://example.org/\u2028",
    # ports
    "https://example.org:0/", "https://example.org:22/", "https://example.org:25/", "https://example.org:65536/",
    "https://example.org:99999/", "https://example.org:0443/", "https://example.org:+443/", "https://example.org:４４３/",
    "https://example.org:443:443/", "https://example.org:8443 /",
    "https://example.org/" + "a" * 2048,
]  # fmt: skip


@pytest.mark.parametrize("url", BAD)
def test_no_url_that_leads_astray(url: str) -> None:
    with pytest.raises(BadUrl) as refused:
        parse_url(url)
    assert len(url) < 12 or url.strip() not in str(refused.value), "a URL may hold a secret"


@pytest.mark.parametrize(
    ("url", "requested"),
    [
        ("https://hooks.example.org", "https://hooks.example.org/"),
        ("https://Hooks.Example.ORG:443/a/b?c=d&e", "https://hooks.example.org/a/b?c=d&e"),
        ("https://hooks.example.org:8443/%7Ea?x=%20", "https://hooks.example.org:8443/%7Ea?x=%20"),
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
        ("https://1.1.1.1/x", "https://1.1.1.1/x"),
        ("https://[2606:4700:4700:0::1111]/x", "https://[2606:4700:4700::1111]/x"),
        ("https://hooks.example.org?x", "https://hooks.example.org/?x"),
        ("https://receiver/", "https://receiver/"),  # what it means is looked up for each delivery
    ],
)
def test_what_is_taken_is_put_together_anew(url: str, requested: str) -> None:
    assert parse_url(url).url == requested
    assert parse_url(requested).url == requested


def test_named_networks_may_be_reached_by_http() -> None:
    assert parse_url("http://127.0.0.1:8080/x", LOOPBACK).url == "http://127.0.0.1:8080/x"
    assert parse_url("http://[::1]:8080/", LOOPBACK).host == "::1"
    assert parse_url("http://receiver.internal/", LOOPBACK).port == 80
    for url in ("http://1.1.1.1/", "http://10.0.0.1/", "https://10.0.0.1/", "http://127.1:8080/"):
        with pytest.raises(BadUrl):
            parse_url(url, LOOPBACK)


@given(
    st.one_of(
        st.text(max_size=80),
        st.text(alphabet="htps:/@.[]%#?\\0127xaA-:", max_size=60).map(lambda text: "https://" + text),
    )
)
def test_whatever_passes_means_the_same_host_to_others(url: str) -> None:
    try:
        target = parse_url(url)
    except BadUrl:
        return
    other = urlsplit(target.url)
    assert (other.hostname, other.port or 443, other.username, other.fragment) == (target.host, target.port, None, "")
    if target.host[0] in "0123456789" and target.host.replace(".", "").isdigit():
        assert is_allowed(target.host)
