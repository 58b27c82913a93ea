"""Where the program listens, as people write it and as it is said to them."""

import socket

import pytest

from exporter.web.server import AddressError, bind, url_of


@pytest.mark.parametrize(
    ("address", "url"),
    [(":0", "http://localhost:"), ("127.0.0.1:0", "http://127.0.0.1:"), ("localhost:0", "http://127.0.0.1:")],
)
def test_a_listening_socket_has_an_address_that_people_can_open(address: str, url: str) -> None:
    with bind(address) as listener:
        port = listener.getsockname()[1]

        assert url_of(listener) == f"{url}{port}"
        socket.create_connection(("127.0.0.1", port)).close()


@pytest.mark.parametrize("address", ["", "10144", "host", "a:b", ":65536", "::1:80", "[::1]", "http://localhost:80"])
def test_what_is_no_address_is_refused_with_an_example(address: str) -> None:
    with pytest.raises(AddressError, match="expected an address such as :10144 or"):
        bind(address)
