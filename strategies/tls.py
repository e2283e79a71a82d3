"""TLS between devices and the server's half: certificates, and what both ends' sockets are told.

The certificate is made for the run, or read from the user's files. Devices trust it and no other:
it is in the train messages, which Flower carries. So neither its name nor its dates say anything,
and clocks and addresses of devices may be wrong.

websockets reads in one thread and writes in another, and OpenSSL lets only one be in a connection
at a time. So nothing may arrive that was not asked for: no session tickets (with them 1 of 300
connections broke), no WebSocket pings. TCP's own keep-alive notices who is gone.
"""

import datetime
import socket
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

NAME = "cutbit server half"
BEGINS, ENDS = datetime.datetime(2000, 1, 1), datetime.datetime(9999, 12, 31)


@dataclass(frozen=True)
class Identity:
    """What the server shows.

    Attributes:
        certificate: PEM, which devices are told to trust.
        context: of TLS 1.3, with the key.
    """

    certificate: str
    context: ssl.SSLContext

    @classmethod
    def made(cls) -> "Identity":
        """Of a new key, which is on disk, in a folder of ours alone, until it has been read."""
        with tempfile.TemporaryDirectory(prefix="cutbit-half-") as folder:
            certificate, key = Path(folder, "cert.pem"), Path(folder, "key.pem")
            for path, pem in zip((certificate, key), self_signed(), strict=True):
                path.write_bytes(pem)
            return cls.read(certificate, key)

    @classmethod
    def read(cls, certificate: Path, key: Path) -> "Identity":
        """Of files: the certificate first in its file, any it is signed by after it.

        Raises:
            ValueError: they cannot be read, or do not belong together; names half_cert or half_key.
        """
        for name, path in (("half_cert", certificate), ("half_key", key)):
            if not path.is_file():
                raise ValueError(f"{name}={path}: no such file")
        try:
            first = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
            context = _context(certificate, key)
        except (ValueError, OSError) as error:  # ssl.SSLError is an OSError
            raise ValueError(f"half_cert={certificate} half_key={key}: {error}") from error
        return cls(first.public_bytes(Encoding.PEM).decode(), context)


def self_signed() -> tuple[bytes, bytes]:
    """Return a new certificate and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    built = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=BEGINS,
        not_valid_after=ENDS,
    )
    signed = built.sign(key, hashes.SHA256())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return signed.public_bytes(Encoding.PEM), secret


def trusting(certificate: str) -> ssl.SSLContext:
    """Return what a device dials with: it trusts this certificate (PEM), whatever its name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # itself, not who signed it
    context.load_verify_locations(cadata=certificate)
    return context


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel end a connection whose other end is gone without a word, in two minutes."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 5)):
        if hasattr(socket, name):  # not everywhere
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.load_cert_chain(certificate, key)
    return context
