"""Listen addresses: parsing, the URL of a listener, and the options of its connections."""

import asyncio
import socket

import pytest

from exporter.web.server import AddressError, bind, url_of


@pytest.mark.parametrize(
    ("address", "url"),
    [(":0", "http://localhost:"), ("127.0.0.1:0", "http://127.0.0.1:"), ("localhost:0", "http://127.0.0.1:")],
)
def test_the_url_of_a_listening_socket_can_be_opened(address: str, url: str) -> None:
    with bind(address) as listener:
        port = listener.getsockname()[1]

        assert url_of(listener) == f"{url}{port}"
        socket.create_connection(("127.0.0.1", port)).close()


@pytest.mark.parametrize(
    "address",
    [
        *(
            "",
            "10144",
            "host",
            "a:b",
            ":65536",
            "::1:80",
            "[::1]",
            "http://localhost:80",
            "[::1%lo]:80",
            "*:80",
            " :80",
        ),
        *("\udcff:80", "ä" * 64 + ":80", "ü.example:80", ":\u0663", "local\nhost:80", "local\0host:80"),
    ],
)
def test_an_invalid_listen_address_is_an_error_with_an_example(address: str) -> None:
    with pytest.raises(AddressError, match="expected an address such as :10144 or"):
        bind(address)


def test_accepted_connections_have_tcp_nodelay() -> None:
    """Nagle's algorithm delays the end of a response by 40 ms, until the client acknowledges the data before it."""

    async def main() -> int:
        accepted: asyncio.Queue[socket.socket] = asyncio.Queue()

        class Accepting(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                accepted.put_nowait(transport.get_extra_info("socket"))

        listener = bind("127.0.0.1:0")
        server = await asyncio.get_running_loop().create_server(Accepting, sock=listener)
        with socket.create_connection(listener.getsockname()):
            connection = await accepted.get()
            no_delay = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        server.close()
        return no_delay

    assert asyncio.run(main()) == 1
