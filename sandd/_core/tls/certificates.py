"""What a controller serves by, read from the disk and made where it is due. Every call blocks."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandd._core._errors import ConfigurationError
from sandd._core.logs import get_logger
from sandd._core.tls import authority
from sandd._core.tls.contexts import ClientCertificates, ServerTls, server_tls
from sandd._core.tls.files import DIRECTORY, AuthorityFiles, file_state
from sandd._core.tls.rotation import Phase, Rotation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AsyncExitStack

    from sandd._core.tls.key_pair import KeyPair
    from sandd._core.tls.pins import Pin

log = get_logger("tls")

EVERY_ADDRESS: Final = ("", "0.0.0.0", "::")  # noqa: S104 - compared, not bound
LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")


class Certificates(ABC):
    """Where a server's certificate comes from."""

    pin: Pin | None = None
    """Of the CA that vouches for it, where it is ours."""

    @abstractmethod
    def load(self, now: float) -> ServerTls:
        """What to present from now on (seconds of Unix time). ConfigurationError if there is nothing usable."""

    @abstractmethod
    def is_due(self, now: float) -> bool:
        """Whether `load` would give another one than it did."""


@define
class OwnAuthority(Certificates):
    """A CA of the controller's own; its server's certificate is renewed as it ages."""

    files: AuthorityFiles
    names: Sequence[str]
    """Host names and addresses that it is dialled by."""
    client_certificates: ClientCertificates = "off"
    _renew_at: float = field(default=0.0, init=False)
    _state: tuple[object, ...] = field(default=(), init=False)
    pin: Pin | None = field(default=None, init=False)

    def load(self, now: float) -> ServerTls:
        """The certificate that is kept, or a new one where that is due."""
        with self.files.locked():
            rotation = open_authority(self.files, now)
            facts = self._usable(rotation, now)
            if facts is None:
                try:
                    pair = authority.issue_server(rotation.issuer, self.names, now)
                except ValueError as error:
                    raise ConfigurationError(f"no certificate can be made: {error}") from error
                self.files.write_server(pair)
                facts = authority.read_facts(pair.certificate)
                log.info(
                    "certificate_issued",
                    names=sorted(facts.names),
                    issuer=facts.issuer,
                    not_after=round(facts.not_after),
                )
            bundle = bundle_of(rotation)
            served = server_tls(
                self.files.server_file,
                self.files.server_file,
                bundle=bundle,
                client_authorities=bundle,
                client_certificates=self.client_certificates,
            )
            self.files.publish(bundle)
            state = self.files.state()
        self._renew_at, self._state = facts.renew_at, state
        self.pin = authority.read_facts(rotation.issuer.certificate).pin
        return served

    def is_due(self, now: float) -> bool:
        """It has aged, or somebody has written in the directory."""
        return now >= self._renew_at or self.files.state() != self._state

    def _usable(self, rotation: Rotation, now: float) -> authority.CertificateFacts | None:
        """The kept certificate, if it is of the CA that signs now, for these names, and young enough."""
        try:
            pem = self.files.server_file.read_text("ascii")
            facts = authority.read_facts(pem)
            server_tls(self.files.server_file, self.files.server_file)  # key and certificate fit
        except (OSError, ValueError, ConfigurationError):
            return None
        wanted = authority.names_in(self.names)
        is_good = (
            facts.names == wanted
            and facts.not_before <= now < facts.renew_at
            and authority.is_issued_by(pem, rotation.issuer)
        )
        return facts if is_good else None


@define
class OwnFiles(Certificates):
    """Files of the user's own, which somebody else renews."""

    certificate_file: Path
    key_file: Path
    client_authority: AuthorityFiles | None = None
    """Has the CA of client certificates; needed unless these are off."""
    client_certificates: ClientCertificates = "off"
    _state: tuple[object, ...] = field(default=(), init=False)

    def load(self, now: float) -> ServerTls:
        """What is in the files, if a server may use it at all."""
        state = self._look()
        client_authorities = b""
        if self.client_certificates != "off":
            assert self.client_authority is not None
            with self.client_authority.locked():
                client_authorities = bundle_of(open_authority(self.client_authority, now))
        served = server_tls(
            self.certificate_file,
            self.key_file,
            client_authorities=client_authorities,
            client_certificates=self.client_certificates,
        )
        try:
            facts = authority.read_facts(self.certificate_file.read_text("ascii", "replace"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the certificate {self.certificate_file} can't be read: {error}"
            ) from error
        if not facts.serves:
            raise ConfigurationError(
                f"{self.certificate_file} is no server's certificate: its extended key usage is for clients only"
            )
        if facts.not_after <= now:
            raise ConfigurationError(
                f"the certificate {self.certificate_file} has expired {(now - facts.not_after) / 86400:.1f} days ago"
            )
        self._state = state
        return served

    def is_due(self, now: float) -> bool:
        """Somebody has written to them."""
        return self._look() != self._state

    def _look(self) -> tuple[object, ...]:
        others = () if self.client_authority is None else self.client_authority.state()
        return (file_state(self.certificate_file), file_state(self.key_file), *others)


def choose_certificates(
    tls: object,
    *,
    host: str,
    names: Sequence[str],
    client_certificates: str,
    state_dir: Path | None,
    stack: AsyncExitStack,
) -> Certificates:
    """Where the certificate comes from that `open_controller` was told to serve by.

    ConfigurationError if the arguments make no sense together. What is made for this run alone goes with the `stack`.
    """
    asks = _client_certificates(client_certificates)
    if isinstance(tls, str):
        if tls != "auto":
            raise ConfigurationError(
                f'tls is {tls!r}; it can be "auto", a pair of files (certificate, key), or None'
            )
        directory = None if state_dir is None else state_dir / DIRECTORY
        if directory is None:
            made = TemporaryDirectory(prefix="sandd-tls-", ignore_cleanup_errors=True)
            directory = Path(stack.enter_context(made))
            log.warning(
                "authority_is_temporary",
                reason="without a state directory the CA is of this run alone: the next one has another pin",
            )
        return OwnAuthority(AuthorityFiles(directory), server_names(host, names), asks)
    try:
        certificate_file, key_file = (Path(each) for each in tls)  # type: ignore[attr-defined] # an object
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f'tls is {tls!r}; it can be "auto", a pair of files (certificate, key), or None'
        ) from error
    if names:
        raise ConfigurationError(
            'tls_names are for certificates that are made here (tls="auto"); a file has its own'
        )
    if asks != "off" and state_dir is None:
        raise ConfigurationError(
            "client certificates are of the controller's own CA, which is in its state directory: give it one"
        )
    client_authority = None
    if asks != "off" and state_dir is not None:
        client_authority = AuthorityFiles(state_dir / DIRECTORY)
    return OwnFiles(certificate_file, key_file, client_authority, asks)


def _client_certificates(given: str) -> ClientCertificates:
    match given:
        case "off" | "optional" | "required":
            return given
        case _:
            raise ConfigurationError(
                f"client_certificates is {given!r}; it can be off, optional or required"
            )


def open_authority(files: AuthorityFiles, now: float) -> Rotation:
    """The CA that is kept; one is made where there is none. Hold the lock."""
    rotation = read_authority(files)
    if rotation is None:
        rotation = Rotation(Phase.STEADY, now, authority.new_authority(now))
        files.write(rotation)
        log.info("authority_made", pin=str(pin_of(rotation.old)), directory=str(files.directory))
    return rotation


def read_authority(files: AuthorityFiles) -> Rotation | None:
    """The CA that is kept; None: there is none. ConfigurationError if it can't be used."""
    rotation = files.read()
    try:
        for each in () if rotation is None else rotation.trusted:
            authority.check_authority(each)
    except ValueError as error:
        raise ConfigurationError(f"a CA in {files.directory} is damaged: {error}") from error
    return rotation


def bundle_of(rotation: Rotation) -> bytes:
    """The certificates of all CAs that are to be trusted, in PEM."""
    return "".join(each.certificate for each in rotation.trusted).encode("ascii")


def pin_of(pair: KeyPair) -> Pin:
    """What a CA is known by."""
    return authority.read_facts(pair.certificate).pin


def server_names(host: str, further: Sequence[str]) -> list[str]:
    """What a server that listens on `host` can be dialled by, as far as that is known here, and what the user adds."""
    bound = [] if host in EVERY_ADDRESS else [host.partition("%")[0]]
    own = socket.gethostname()
    # A machine may have a name that no certificate can: that is nobody's mistake.
    names = [*bound, *further, *LOCAL_NAMES, *([own] if authority.can_be_named(own) else [])]
    return list(dict.fromkeys(names))
