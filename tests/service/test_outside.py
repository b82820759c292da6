"""Fault row 19: whatever somebody names, the service connects to public addresses and allowed hosts alone."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from receivers import Door, Receiver

from service.outside import (
    Allowed,
    Guard,
    Malformed,
    OutsideError,
    Refused,
    Resolve,
    Unresolved,
    outside_client,
)


@pytest.fixture
def door() -> Iterator[Door]:
    opened = Door()
    yield opened
    opened.close()


def telling(*answers: Sequence[str]) -> Resolve:
    """A resolver that says one answer after the other, and the last one for ever."""
    left = list(answers)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


UNTRUSTING = ssl.create_default_context()


def fetch(guard: Guard, url: str, *, verify: ssl.SSLContext = UNTRUSTING) -> httpx.Response:
    """What a request by the guarded client brings."""

    async def run() -> httpx.Response:
        async with outside_client(guard, timeout_s=5, verify=verify) as client:
            return await client.post(url, content=b"{}")

    return asyncio.run(run())


HOSTILE = [
    "https://127.0.0.1:{port}/",
    "https://127.1:{port}/",
    "https://127.0.0.1.:{port}/",
    "https://2130706433:{port}/",
    "https://017700000001:{port}/",
    "https://0x7f000001:{port}/",
    "https://0x7f.1:{port}/",
    "https://0177.0.0.1:{port}/",
    "https://127.0.0.0x1:{port}/",
    "https://0:{port}/",
    "https://0.0.0.0:{port}/",
    "https://[::1]:{port}/",
    "https://[::]:{port}/",
    "https://[::ffff:127.0.0.1]:{port}/",
    "https://[::ffff:7f00:1]:{port}/",
    "https://[::127.0.0.1]:{port}/",
    "https://[64:ff9b::7f00:1]:{port}/",
    "https://[64:ff9b:1::7f00:1]:{port}/",
    "https://[2002:7f00:1::]:{port}/",
    "https://[2001:0:7f00:1::]:{port}/",
    "https://[fe80::1]:{port}/",
    "https://[fe80::1%25lo]:{port}/",
    "https://[fc00::1]:{port}/",
    "https://[fd00:ec2::254]/latest/meta-data/",
    "https://[ff02::1]:{port}/",
    "https://localhost:{port}/",
    "https://localhost.:{port}/",
    "https://LOCALHOST:{port}/",
    "https://169.254.169.254/latest/meta-data/",
    "https://100.100.100.200/",
    "https://168.63.129.16/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://192.168.1.1/",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    "https://user@127.0.0.1:{port}/",
    "https://example.org@127.0.0.1:{port}/",
    "https://127.0.0.1:{port}#@example.org/",
    "https://127.0.0.1:{port}\\@example.org/",
    "https://example.org\\@127.0.0.1:{port}/",
    "https://%31%32%37.0.0.1:{port}/",
    "https://①②⑦.⓪.⓪.①:{port}/",
    "https://127。0。0。1:{port}/",
    "https://127.0.0.1:{port}:80/",
    "https:/127.0.0.1:{port}/",
    "https:///127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/",
    "http://93.184.215.14/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/_x",
    "ftp://127.0.0.1:{port}/",
    "unix:///var/run/docker.sock",
    " https://127.0.0.1:{port}/",
    "https://127.0.0.1\t:{port}/",
    "https://127.0.0.1:0/",
    "https://127.0.0.1:99999/",
    "https://" + "a" * 64 + ".example/",
    "https://a.example/" + "x" * 2000,
    "",
]


@pytest.mark.parametrize("url", HOSTILE)
def test_hostile_forms_reach_nothing(door: Door, url: str) -> None:
    with pytest.raises((OutsideError, httpx.InvalidURL, httpx.UnsupportedProtocol)):
        fetch(Guard(), url.format(port=door.port))
    with pytest.raises(OutsideError):
        asyncio.run(Guard().admit(url.format(port=door.port)))
    assert door.came == 0


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["93.184.215.14", "127.0.0.1"],
        ["2606:2800::1", "::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["169.254.169.254"],
        ["0.0.0.0"],
    ],
)
def test_names_of_other_addresses_reach_nothing(door: Door, addresses: list[str]) -> None:
    guard = Guard(resolve=telling(addresses))
    with pytest.raises(Refused, match=r"hook\.example"):
        fetch(guard, f"https://hook.example:{door.port}/")
    assert door.came == 0


def test_a_name_that_means_something_else_a_moment_later_reaches_nothing(door: Door) -> None:
    guard = Guard(resolve=telling(["93.184.215.14"], ["127.0.0.1"]))
    url = f"https://hook.example:{door.port}/"
    assert str(asyncio.run(guard.admit(url)).addresses[0]) == "93.184.215.14"
    with pytest.raises(Refused):
        fetch(guard, url)
    assert door.came == 0


def test_a_name_is_resolved_once_for_a_request() -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"]

    with Receiver() as receiver:
        url = f"http://hook.example:{receiver.port}/in?x=1"
        answer = fetch(Guard(["hook.example"], resolve=resolve), url)
    assert (answer.status_code, asked) == (200, ["hook.example"])
    (got,) = receiver.got
    assert (got.path, got.headers["host"]) == ("/in?x=1", f"hook.example:{receiver.port}")


def test_a_name_without_an_address() -> None:
    async def nowhere(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(-2, "Name or service not known")

    for resolve in (nowhere, telling([])):
        with pytest.raises(Unresolved, match=r"gone\.example"):
            asyncio.run(Guard(resolve=resolve).admit("https://gone.example/"))


@pytest.mark.parametrize(
    ("allowed", "host", "addresses", "scheme", "admitted"),
    [
        (["pacs.hospital"], "pacs.hospital", ["10.1.2.3"], "https", True),
        (["pacs.hospital"], "PACS.hospital.", ["10.1.2.3"], "http", True),
        (["pacs.hospital"], "pacs.hospital", ["169.254.169.254"], "https", False),
        (["pacs.hospital"], "pacs.hospital", ["224.0.0.1"], "https", False),
        (["pacs.hospital"], "x.pacs.hospital", ["10.1.2.3"], "https", False),
        (["pacs.hospital"], "other.hospital", ["10.1.2.3"], "https", False),
        (["10.1.0.0/16"], "any.hospital", ["10.1.2.3"], "http", True),
        (["10.1.0.0/16"], "10.1.2.3", [], "https", True),
        (["10.1.0.0/16"], "any.hospital", ["10.1.2.3", "10.2.0.1"], "https", False),
        (["10.1.2.3"], "10.1.2.4", [], "https", False),
        (["fd00::/8"], "[fd00::1]", [], "https", True),
        (["127.0.0.0/8"], "[::ffff:127.0.0.1]", [], "https", False),
        (["0.0.0.0/0"], "2130706433", [], "https", False),
        ([], "public.example", ["93.184.215.14", "2606:2800:21f::1"], "https", True),
        ([], "public.example", ["93.184.215.14"], "http", False),
        ([], "8.8.8.8", [], "https", True),
    ],
)
def test_what_is_allowed_is_admitted_and_no_more(
    allowed: list[str], host: str, addresses: list[str], scheme: str, admitted: bool
) -> None:
    guard = Guard(allowed, resolve=telling(addresses))
    if admitted:
        destination = asyncio.run(guard.admit(f"{scheme}://{host}/x"))
        assert [str(address) for address in destination.addresses] == (addresses or [host.strip("[]")])
    else:
        with pytest.raises((Refused, Malformed)):
            asyncio.run(guard.admit(f"{scheme}://{host}/x"))


@pytest.mark.parametrize("entry", ["", "*", "http://a.example", "a example", "10.0.0.1/8", "127.1", "a/b"])
def test_an_allow_list_that_cannot_be_read_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        Allowed.of([entry])


def test_redirects_lead_nowhere(door: Door) -> None:
    with Receiver(307, headers={"Location": f"http://127.0.0.1:{door.port}/"}) as receiver:
        answer = fetch(Guard(["127.0.0.1"]), receiver.url)
    assert (answer.status_code, len(receiver.got), door.came) == (307, 1, 0)


def test_proxies_of_the_environment_are_not_asked(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{door.port}")
        monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{door.port}")
    with Receiver() as receiver:
        assert fetch(Guard(["127.0.0.1"]), receiver.url).status_code == 200
    assert (len(receiver.got), door.came) == (1, 0)


def test_the_next_address_is_tried_where_one_takes_no_connection() -> None:
    with Receiver() as receiver:
        guard = Guard(["127.0.0.0/8"], resolve=telling(["127.0.0.2", "127.0.0.1"]))
        assert fetch(guard, f"http://hook.example:{receiver.port}/").status_code == 200
    assert len(receiver.got) == 1


def test_tls_is_verified_against_the_name_and_not_the_address(tmp_path: Path) -> None:
    served, authority = certificate(tmp_path, "hook.example")
    trusting = ssl.create_default_context(cafile=str(authority))
    guard = Guard(["127.0.0.0/8"], resolve=telling(["127.0.0.1"]))
    with Receiver(certificate=served) as receiver:
        url = f"https://hook.example:{receiver.port}/"
        assert fetch(guard, url, verify=trusting).status_code == 200
        with pytest.raises(httpx.ConnectError):
            fetch(guard, url.replace("hook", "other"), verify=trusting)
        with pytest.raises(httpx.ConnectError):
            fetch(guard, url, verify=UNTRUSTING)
    assert receiver.names[:2] == ["hook.example", "other.example"]
    assert [got.headers["host"] for got in receiver.got] == [f"hook.example:{receiver.port}"]


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate with its key, and the certificate alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "both.pem").write_bytes(made + secret)
    (folder / "authority.pem").write_bytes(made)
    return folder / "both.pem", folder / "authority.pem"
