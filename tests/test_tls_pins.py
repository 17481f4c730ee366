"""What a CA is known by: the same hash that other tools give, read strictly."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandd import ConfigurationError
from sandd._core.tls.pins import MAX_PINS, Pin, read_certificates, read_pins, write_certificates

PEM = Path(__file__).with_name("certificate.pem").read_bytes()


def test_a_pin_is_the_hash_of_the_certificate() -> None:
    """Of its DER, as ``ssl`` makes it of the same file, key and all."""
    text = PEM.decode()
    only = text[text.index("-----BEGIN CERTIFICATE") :]
    der = ssl.PEM_cert_to_DER_cert(only)
    assert read_certificates(PEM) == [der]
    assert str(Pin.of(der)) == f"sha256:{hashlib.sha256(der).hexdigest()}"


@given(st.lists(st.binary(min_size=1, max_size=2000), max_size=4))
def test_certificates_are_read_as_they_were_written(certificates: list[bytes]) -> None:
    """And ``ssl`` writes one the same."""
    assert read_certificates(write_certificates(certificates)) == certificates
    for each in certificates:
        assert write_certificates([each]).decode() == ssl.DER_cert_to_PEM_cert(each)


@given(st.binary(max_size=200))
def test_whatever_else_there_is_is_passed_over(junk: bytes) -> None:
    """Before and behind a certificate, and where one is no base64."""
    broken = b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n"
    found = read_certificates(junk + b"\n" + broken + PEM + broken + junk)
    assert found[:1] == read_certificates(PEM)


def test_pins_are_read_in_any_order_and_case() -> None:
    """Several have commas between them; the same one twice is one."""
    one, two = Pin(bytes(32)), Pin(b"\xab" * 32)
    assert read_pins(str(one)) == (one,)
    assert read_pins(f" sha256:{'AB' * 32} , {one},{one}") == (one, two)
    assert repr(one) != repr(two)


@pytest.mark.parametrize(
    "text",
    [
        *("", "sha256:", "sha256:" + "0" * 63, "sha256:" + "0" * 65, "sha256:" + "g" * 64),
        *("0" * 64, "sha1:" + "0" * 40, "SHA256:" + "0" * 64, "sha256:" + "٣" * 64),
    ],
    ids=repr,
)
def test_what_is_no_pin_is_told(text: str) -> None:
    """A cut one would be found in more certificates than one."""
    with pytest.raises(ConfigurationError, match="64 hexadecimal digits"):
        read_pins(text)


def test_pins_are_few() -> None:
    """Whoever needs more has several controllers."""
    pins = [str(Pin(bytes([number]) * 32)) for number in range(MAX_PINS + 1)]
    assert len(read_pins(",".join(pins[:MAX_PINS]))) == MAX_PINS
    with pytest.raises(ConfigurationError, match="at most"):
        read_pins(",".join(pins))
