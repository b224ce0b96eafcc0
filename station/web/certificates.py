"""The page's certificate: where it lies, whether it fits, and one that the station makes itself."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from station.config import ConfigError, WebSettings
from station.web.hosts import own_names

_DAYS = 825
"""Longer ones are refused by some browsers."""
_WARN_DAYS = 30
_CREDENTIALS = "CREDENTIALS_DIRECTORY"
_TEST_NET = ("192.0.2.1", 9)
"""RFC 5737: nothing is sent; the kernel says from which address it would be."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Certificate chain and key, PEM."""

    cert: Path
    key: Path


def tls_files(settings: WebSettings) -> TlsFiles | None:
    """Where they lie; None without TLS. Raises `ConfigError` if they cannot serve."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    found = TlsFiles(placed(settings.tls_cert_file), placed(settings.tls_key_file))
    for key, path in (("tls_cert_file", found.cert), ("tls_key_file", found.key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"web.{key}: {path} cannot be read: {error.strerror}") from error
    tls_context(found)
    return found


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """What the page speaks, whatever this machine's OpenSSL is set to: TLS 1.2 and later (NIST SP
    800-52 Rev. 2). Raises `ConfigError` if the files cannot serve."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.cert, files.key)
    except ssl.SSLError as error:
        why = error.reason or str(error)
        raise ConfigError(
            f"web.tls_cert_file: {files.cert} and {files.key} do not serve: {why}; a certificate "
            "and the key that belongs to it are wanted, both PEM, the key without a pass phrase"
        ) from error
    return context


def placed(path: Path) -> Path:
    """One without a folder is a credential of the unit, where there are any."""
    folder = os.environ.get(_CREDENTIALS)
    return Path(folder) / path if folder and path.parent == Path() else path


@dataclass(frozen=True, slots=True)
class Certificate:
    """The one that is served: as its file was when the page began."""

    path: Path
    ends_at: datetime

    def warning(self, now: datetime) -> str:
        """That it ends soon, or has ended; empty if it does not."""
        if self.ends_at - now > timedelta(days=_WARN_DAYS):
            return ""
        verb = "has ended" if self.is_over(now) else "ends"
        day = self.ends_at.date().isoformat()
        return f"{self.path} {verb} on {day}; make or get a new one and start the page again"

    def is_over(self, now: datetime) -> bool:
        """Browsers refuse it."""
        return self.ends_at <= now


def certificate_at(path: Path) -> Certificate:
    """Of a file that can serve."""
    found = x509.load_pem_x509_certificate(path.read_bytes())
    return Certificate(path, found.not_valid_after_utc)


def make_certificate(folder: Path, names: Iterable[str], now: datetime) -> str:
    """`cert.pem` and `key.pem` (mode 0600) in `folder`, good for this machine's names and addresses
    and for `names`; the certificate's sha256 as browsers show it. Raises OSError, also if there are
    such files."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(key, _all_names(names), now)
    folder.mkdir(parents=True, exist_ok=True)
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    _write_new(folder / "key.pem", secret, 0o600)
    _write_new(folder / "cert.pem", certificate.public_bytes(pem), 0o644)
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def _all_names(more: Iterable[str]) -> list[str]:
    return list(dict.fromkeys((*own_names(), *_addresses(), "localhost", "127.0.0.1", *more)))


def _addresses() -> Sequence[str]:
    """By which others reach this machine, as far as its routes say."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_TEST_NET)
        except OSError:
            return ()
        return (probe.getsockname()[0],)


def _certificate(
    key: ec.EllipticCurvePrivateKey, names: list[str], now: datetime
) -> x509.Certificate:
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    return (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(usage, False)
        .sign(key, hashes.SHA256())
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
