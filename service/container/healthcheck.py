"""End with 0 if the service in this container is ready, else with 1: `healthcheck.py [PORT]`, for Docker's HEALTHCHECK.

The service speaks HTTP or HTTPS; both are tried.
"""

import http.client
import ssl
import sys

TIMEOUT_S = 11.0  # /ready itself waits up to 10 s for a forward pass


def is_ready(port: int) -> bool:
    """Return whether `GET /ready` on loopback is answered with 200."""
    # The certificate is for the name of the service, not for loopback, and nothing secret is sent.
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    for connection in (
        http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S),
        http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=unverified),
    ):
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            continue
        finally:
            connection.close()
    return False


if __name__ == "__main__":
    sys.exit(not is_ready(int(sys.argv[1]) if len(sys.argv) > 1 else 8000))
