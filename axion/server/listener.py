"""The socket and the certificate. Imports little, so that a server listens within a moment."""

from __future__ import annotations

import errno
import socket
import ssl

from axion.settings import Settings, SettingsError

BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        SettingsError: the address cannot be had; the message says why.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except socket.gaierror:
        raise SettingsError(f"SERVER_HOST: {host!r} is no address of this machine.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"Port {port} on {host} is in use. Choose another with --server-port "
                "(SERVER_PORT), or stop the program that has it."
            ) from None
        raise SettingsError(f"Cannot listen on {host} port {port}: {error.strerror}.") from None


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """What HTTPS needs, or None for HTTP.

    Raises:
        SettingsError: one of certificate and key is missing, or they cannot be used.
    """
    certificate, key = settings.tls_cert_file, settings.tls_key_file
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise SettingsError("HTTPS needs both TLS_CERT_FILE and TLS_KEY_FILE.")
    for name, path in (("TLS_CERT_FILE", certificate), ("TLS_KEY_FILE", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise SettingsError(f"{name}: cannot read {path}: {error.strerror}.") from None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # A password of our own keeps openssl from asking for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError):
        raise SettingsError(
            "TLS_CERT_FILE and TLS_KEY_FILE must be PEM files of one certificate and its key, "
            "the key without a password."
        ) from None
    return context
